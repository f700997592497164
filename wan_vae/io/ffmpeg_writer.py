"""Writing clips through FFmpeg, and what each format can hold."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import av.error
import av.filter
import torch

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioCopy, AudioSource
from wan_vae.io.clip import LOGGER, ClipSink
from wan_vae.io.color import Color, Scaler, frame_of
from wan_vae.io.file_names import file_url
from wan_vae.io.orientation import Picture
from wan_vae.io.timing import FASTEST, SLOWEST

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
    slowest: Fraction = SLOWEST  # lowest and highest frame rate
    fastest: Fraction = FASTEST
    largest_side: int = 16384  # pixels
    ticks: int | None = None  # time units of the container per second, None if it stores any rate exactly
    stores_aspect: bool = False  # of pixels; other containers than QuickTime could, but PyAV sets it in H.264 alone
    stores_color: bool = True  # primaries and transfer
    muxer: dict[str, str] = field(default_factory=dict)  # options of the container


# With AVX-512, x264's macroblock tree (core 165) depends on memory that nobody wrote: no two runs are alike. With these
# instructions it gives the bytes of all other processors.
_X264_UP_TO_AVX2 = "asm=MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"


def _h264(container: str, **options: str) -> Format:
    options = {"crf": "17", "preset": "medium"} | options
    return Format(container, "libx264", "yuv420p", options, "yuv444p", stores_aspect=True)


def _h264_rgb(container: str) -> Format:
    return Format(container, "libx264rgb", "rgb24", {"qp": "0", "preset": "medium"}, stores_aspect=True)


def _matroska(form: Format) -> Format:
    """Matroska and WebM count time in 1/1000 s, though they store the duration of a frame exactly."""
    return replace(form, fastest=Fraction(1000))


_VP9 = {"b:v": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1", "tile-columns": "2"}
# FFmpeg pairs packets of colors and alpha, which are encoded apart; without frames that are not shown these agree.
_VP9_ALPHA = {"auto-alt-ref": "0"}
# Higher levels cut frames into slices, which fails for frames of a few pixels.
_FFV1 = {"level": "1", "g": "1"}

# GIF stores durations in 1/100 s with 16 bits, and players ignore those below 2/100 s.
_SLOWEST_GIF, _FASTEST_GIF = Fraction(100, 2**16 - 1), Fraction(50)

_FASTEST_AVI = Fraction(1000)  # FFmpeg writes others with times of 1/600 s

# Stores durations in 1/1000 s with 24 bits, and sides less one with 14. `WebPSink` writes it.
_WEBP = Format(
    "webp",
    "libwebp",
    "bgra",
    slowest=Fraction(1000, 2**24 - 1),
    fastest=Fraction(1000),
    largest_side=2**14 - 1,
    ticks=1000,
    stores_color=False,
)

LOSSY = {
    ".mp4": _h264("mp4"),
    ".mov": _h264("mov"),
    ".mkv": _matroska(_h264("matroska")),
    # AVI stores no timestamps, so frames must be stored in display order: no B-frames.
    ".avi": replace(_h264("avi", bf="0"), fastest=_FASTEST_AVI),
    ".webm": _matroska(Format("webm", "libvpx-vp9", "yuv420p", _VP9 | {"crf": "20"})),
    ".gif": Format("gif", "gif", "pal8", slowest=_SLOWEST_GIF, fastest=_FASTEST_GIF, ticks=100, stores_color=False),
    ".webp": _WEBP,
}

# Players can show it while it is written: fragments of a group of pictures, none of which is changed afterwards.
FRAGMENTED = replace(
    _h264("mp4", g="16", tune="zerolatency"),
    muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"},
)

LOSSLESS = {
    ".mp4": _h264_rgb("mp4"),
    ".mov": _h264_rgb("mov"),
    ".mkv": _matroska(Format("matroska", "ffv1", "bgr0", _FFV1)),
    ".avi": Format("avi", "ffv1", "bgr0", _FFV1, fastest=_FASTEST_AVI, stores_color=False),
    ".webm": _matroska(Format("webm", "libvpx-vp9", "gbrp", _VP9 | {"lossless": "1"})),
    ".webp": _WEBP,
}

LOSSY_ALPHA = {
    ".mov": Format("mov", "prores_ks", "yuva444p10le", {"profile": "4444", "vendor": "apl0"}, stores_aspect=True),
    ".mkv": _matroska(Format("matroska", "ffv1", "bgra", _FFV1)),
    ".webm": _matroska(Format("webm", "libvpx-vp9", "yuva420p", _VP9 | _VP9_ALPHA | {"crf": "20"})),
    ".webp": _WEBP,
}

LOSSLESS_ALPHA = {
    ".mov": Format("mov", "qtrle", "argb", stores_aspect=True),
    ".mkv": LOSSY_ALPHA[".mkv"],
    ".webp": _WEBP,
}


def formats(*, lossless: bool, alpha: bool) -> dict[str, Format]:
    """Formats of videos and animations that can hold this, by the suffix of the file."""
    if alpha:
        return LOSSLESS_ALPHA if lossless else LOSSY_ALPHA
    return LOSSLESS if lossless else LOSSY


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
        # Without "bitexact", Matroska files get random numbers, and no two runs are alike. The other flags stay: one of
        # them converts audio that comes from MPEG-TS.
        options = {"fflags": "+bitexact", **form.muxer}
        if form.container in ("mp4", "mov") and fps < 1:
            # FFmpeg's time unit is below 1/10000 s, of which a long clip with slow frames has more than it can count.
            options["video_track_timescale"] = str(fps.numerator)
        self._container = av.open(file_url(path), "w", format=form.container, options=options)
        try:
            encoder_options = form.options
            if form.encoder == "libx264" and torch.backends.cpu.get_cpu_capability() == "AVX512":
                encoder_options = {**encoder_options, "x264-params": _X264_UP_TO_AVX2}
            stream = self._container.add_stream(form.encoder, rate=fps, options=encoder_options)
            self._stream = cast("VideoStream", stream)
            is_rgb = form.pixel_format == "pal8" or av.VideoFormat(form.pixel_format).is_rgb
            color = color.for_rgb() if is_rgb else color.for_yuv()
            if form.encoder == "prores_ks":
                color = color.for_prores()
            pixel_format = form.pixel_format
            if form.odd_pixel_format is not None and (width % 2 or height % 2):
                pixel_format = form.odd_pixel_format
                LOGGER.warning(
                    f"{width}x{height} has an odd side, which H.264 cannot store with chroma at half resolution; it is "
                    f"stored at full ({pixel_format}), which not every player shows."
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
                    LOGGER.warning(f"the output is without audio: {error}")
        except BaseException:
            self._container.close()
            raise

    def write(self, picture: Picture) -> None:
        """Append a (height, width, 3 or 4) uint8 picture."""
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
    """Converts RGB or RGBA frames to the stored pixel format."""

    def __init__(self, color: Color, pixel_format: str) -> None:
        options = f"in_range=full:out_color_matrix={color.matrix}:out_range={color.range_name}"
        # ProRes takes these tags from frames, other encoders from their context.
        self._scale = Scaler("" if color.matrix == "rgb" else options, pixel_format, color.primaries, color.transfer)

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
