"""Writing clips through FFmpeg."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import av.error
import av.filter

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioCopy, AudioSource, file_url
from wan_vae.io.clip import LOGGER, ClipSink
from wan_vae.io.color import Color, Scaler, frame_of
from wan_vae.io.orientation import Picture

if TYPE_CHECKING:
    from av.video.stream import VideoStream


@dataclass(frozen=True)
class Format:
    """Container, encoder and pixel format of a kind of file, by FFmpeg's names."""

    container: str
    encoder: str
    pixel_format: str
    options: dict[str, str] = field(default_factory=dict)  # of the encoder
    odd_pixel_format: str | None = None  # for an odd width or height; None if `pixel_format` supports those
    fastest: int | None = None  # highest frame rate, None if there is no limit
    ticks: int | None = None  # time units of the container per second, None if it stores any rate exactly


def _h264(container: str, **options: str) -> Format:
    return Format(container, "libx264", "yuv420p", {"crf": "17", "preset": "medium"} | options, "yuv444p")


_VP9 = {"b:v": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1", "tile-columns": "2"}
# Higher levels cut frames into slices, which fails for frames of a few pixels.
_FFV1 = {"level": "1", "g": "1"}

# GIF counts time in 1/100 s, and players ignore durations below 2/100 s.
LOSSY = {
    ".mp4": _h264("mp4"),
    ".mov": _h264("mov"),
    ".mkv": _h264("matroska"),
    # AVI stores no timestamps, so frames must be stored in display order: no B-frames.
    ".avi": _h264("avi", bf="0"),
    ".webm": Format("webm", "libvpx-vp9", "yuv420p", _VP9 | {"crf": "20"}),
    ".gif": Format("gif", "gif", "pal8", fastest=50, ticks=100),
    ".webp": Format("webp", "libwebp", "bgra", {"quality": "90"}, fastest=1000, ticks=1000),
}

LOSSLESS = {
    ".mp4": Format("mp4", "libx264rgb", "rgb24", {"qp": "0", "preset": "medium"}),
    ".mov": Format("mov", "libx264rgb", "rgb24", {"qp": "0", "preset": "medium"}),
    ".mkv": Format("matroska", "ffv1", "bgr0", _FFV1),
    ".avi": Format("avi", "ffv1", "bgr0", _FFV1),
    ".webm": Format("webm", "libvpx-vp9", "gbrp", _VP9 | {"lossless": "1"}),
    ".webp": Format("webp", "libwebp", "bgra", {"lossless": "1"}, fastest=1000, ticks=1000),
}


class AvSink(ClipSink):
    """Writer of a video or animation through FFmpeg."""

    def __init__(
        self,
        form: Format,
        width: int,
        height: int,
        fps: Fraction,
        color: Color,
        pixel_aspect: Fraction,
        audio: AudioSource | None,
        path: Path,
    ) -> None:
        """Create the file as `form`, whatever the suffix of `path`; for the other arguments see `create_clip`."""
        self._fps = fps
        self._count = 0
        # Loop for ever. This is FFmpeg's default for GIF, but not for WebP.
        options = {"loop": "0"} if form.container == "webp" else {}
        self._container = av.open(file_url(path), "w", format=form.container, options=options)
        try:
            stream = self._container.add_stream(form.encoder, rate=fps, options=form.options)
            self._stream = cast("VideoStream", stream)
            is_rgb = form.pixel_format == "pal8" or av.VideoFormat(form.pixel_format).is_rgb
            color = color.for_rgb() if is_rgb else color.for_yuv()
            pixel_format = form.pixel_format
            if form.odd_pixel_format is not None and (width % 2 or height % 2):
                pixel_format = form.odd_pixel_format
                LOGGER.warning(
                    f"{width}x{height} has an odd side, which H.264 cannot store with chroma at half resolution; it is "
                    f"stored at full ({pixel_format}), which not every player shows."
                )
            if pixel_aspect != 1 and not form.encoder.startswith("libx264"):
                # Containers can store it, but PyAV cannot set it there; H.264 stores it in the stream.
                LOGGER.warning(
                    f"the output cannot say that its pixels are {pixel_aspect} as wide as high, as H.264 could; "
                    "players will take them for square."
                )
            context = self._stream.codec_context
            context.width, context.height, context.pix_fmt = width, height, pixel_format
            context.sample_aspect_ratio = pixel_aspect
            context.colorspace, context.color_range = color.matrix_code, color.range_code
            context.color_primaries, context.color_trc = color.primaries, color.transfer
            self._convert: Callable[[av.VideoFrame | None], Iterator[av.VideoFrame]] = (
                _ToPalette() if pixel_format == "pal8" else _ToPixelFormat(color, pixel_format)
            )
            self._audio: AudioCopy | None = None
            if audio is not None:
                try:
                    self._audio = AudioCopy(audio, self._container)
                except ClipError as error:
                    LOGGER.warning(f"the output is without sound: {error}")
        except BaseException:
            self._container.close()
            raise

    def write(self, picture: Picture) -> None:
        """Append a (height, width, 3) uint8 picture."""
        frame = frame_of(picture)
        frame.pts, frame.time_base = self._count, 1 / self._fps
        self._count += 1
        self._encode(self._convert(frame))
        if self._audio is not None:
            self._audio.advance(self._count / self._fps)

    def finish(self) -> None:
        """Write buffered frames, and close the file."""
        try:
            self._encode(chain(self._convert(None), [None]))
        finally:
            self._close()

    def abort(self) -> None:
        """Close the unfinished file."""
        # The file is discarded because of an error that is being raised.
        with suppress(av.error.FFmpegError, OSError):
            self._close()

    def _encode(self, frames: Iterable[av.VideoFrame | None]) -> None:
        """Encode frames, and with None the rest of the stream."""
        for frame in frames:
            packets = self._stream.encode(frame)
            for packet in packets:
                # Some encoders set no duration, and the last frame would be displayed for no time.
                packet.duration = packet.duration or 1
            self._container.mux(packets)

    def _close(self) -> None:
        if self._audio is not None:
            self._audio.close()
        self._container.close()


class _ToPixelFormat:
    """Converts RGB frames to the stored pixel format."""

    def __init__(self, color: Color, pixel_format: str) -> None:
        options = f"in_range=full:out_color_matrix={color.matrix}:out_range={color.range_name}"
        self._scale = Scaler("" if color.matrix == "rgb" else options, pixel_format)

    def __call__(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        if frame is not None:
            converted = self._scale(frame)
            converted.pts, converted.time_base = frame.pts, frame.time_base
            yield converted


class _ToPalette:
    """Reduces RGB frames to 256 colors, with a palette for each frame, so that no frame waits for others."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Yield the frames that are ready after `frame`; None ends the stream."""
        if self._graph is None:
            if frame is None:
                return
            self._graph = self._build(frame)
        self._graph.vpush(frame)
        while True:
            try:
                yield self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):  # the graph needs more input, or has ended
                return

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        twice = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        applied = graph.add("paletteuse", "new=1")
        source.link_to(twice)
        twice.link_to(palette, 0, 0)
        twice.link_to(applied, 1, 0)
        palette.link_to(applied, 0, 1)
        applied.link_to(graph.add("buffersink"))
        graph.configure()
        return graph
