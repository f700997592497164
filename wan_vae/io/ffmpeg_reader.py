"""Reading clips through FFmpeg.

`check_complete` compares the length of a file with the length that its header declares, since FFmpeg plays many
truncated files without an error. `AvSource` then reads all packets once without decoding them, for the number of
frames, their rate and damage, and decodes when frames are asked for.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import av.error
from av.stream import Disposition

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioSource, file_url, reason
from wan_vae.io.clip import LOGGER, ClipInfo
from wan_vae.io.color import RgbConverter, bit_depth, is_transparent, kind_of
from wan_vae.io.orientation import Orientation, Picture, from_frame
from wan_vae.io.timing import Timing, measure, sort_by_time

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_EBML = b"\x1a\x45\xdf\xa3"


def check_complete(source: Path | BinaryIO, name: str) -> None:
    """Raise a ClipError if a file is empty or shorter than its outermost structure declares.

    Supports MP4 and MOV, Matroska and WebM, AVI, WebP and GIF; other files are only checked for emptiness.
    """
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        actual = file.seek(0, 2)
        if actual == 0:
            raise ClipError(f"{name} is empty (0 bytes); name a video or an image.")
        file.seek(0)
        declared = _declared_length(file, actual)
    if declared > actual:
        raise ClipError(
            f"{name} is cut short: it has {actual} bytes and should have {declared} or more; fetch or copy it again."
        )


def _declared_length(file: BinaryIO, actual: int) -> int:
    """Length in bytes that the header declares, 0 if it declares none."""
    head = file.read(12)
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        # Streaming recorders leave the size at 0 or at its maximum; the padding byte of an odd size is often missing.
        return 0 if size in (0, 0xFFFFFFFF) else 8 + size - size % 2
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp"):
        return _iso_length(file, actual)
    if head.startswith(b"GIF8"):
        file.seek(-min(actual, 64), 2)
        # A GIF ends with a semicolon; some programs add zeros.
        return 0 if file.read().rstrip(b"\0").endswith(b";") else actual + 1
    if head.startswith(_EBML):
        return _matroska_length(file)
    return 0


def _iso_length(file: BinaryIO, actual: int) -> int:
    end = 0
    while end < actual:
        file.seek(end)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:  # the size is 64 bits wide and follows the name
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # 0 means to the end of the file; 2 to 7 are no box
            return 0
        end += size
    return end


def _matroska_length(file: BinaryIO) -> int:
    file.seek(len(_EBML))
    header_size = _element_size(file)
    if header_size is None:
        return 0
    file.seek(header_size, 1)
    size = _element_size(file) if file.read(4) == b"\x18\x53\x80\x67" else None  # the segment, which holds the rest
    return 0 if size is None else file.tell() + size


def _element_size(file: BinaryIO) -> int | None:
    """Read an EBML size at the file's position; None if it is unknown, as in recordings of live streams."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    size = int.from_bytes(first + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return None if size == (1 << 7 * length) - 1 else size


class AvSource:
    """Reader of files that FFmpeg can play; a `ClipSource`."""

    def __init__(self, source: Path | BinaryIO, name: str, frames: tuple[int | None, int | None]) -> None:
        """Read all packets, and decode the first frame.

        A file object must be seekable, and is read from its start. `name` stands for the source in messages; `frames`
        are the first frame and the one after the last. A ClipError if there is no video, it is damaged, or it has none
        of these frames.
        """
        self.name = name
        self._source = source
        self._frames = frames
        self._opaque = False
        self._warned_of_change = False
        check_complete(source, name)
        with self._opened() as (container, stream):
            self.timing = self._survey(container, stream)
        with self._opened() as (container, stream):
            self.info = self._describe(container, stream)
        self.audio: AudioSource | None = None
        if self.info.has_audio and isinstance(source, Path):
            self.audio = AudioSource(source, self.timing.start, self.timing.end)

    def timed_pictures(self) -> Generator[tuple[Fraction, Picture], None, None]:
        """Decode the selected frames; see `ClipSource`."""
        with self._opened() as (container, stream):
            to_rgb: RgbConverter | None = None
            orientation = Orientation()
            rotation = 0
            kind: tuple[object, ...] = ()
            time = Fraction(0)
            # Frames that the decoder returns at the end of the stream have no time base.
            tick = stream.time_base
            for number, frame in enumerate(islice(self._decode(container, stream), *self._frames)):
                # H.264 states the matrix at the first frame of a sequence only. It is read in full only where the angle
                # changes: reading the side data of a frame makes it part of a reference cycle, kept until the next
                # collection.
                if frame.key_frame or frame.rotation:
                    rotation = frame.rotation
                frame_kind = (*kind_of(frame), rotation)
                if to_rgb is None or frame_kind != kind:
                    if to_rgb is not None:
                        self._warn_of_change(number + (self._frames[0] or 0), kind, frame_kind)
                    if to_rgb is None or frame_kind[-1] != kind[-1]:
                        orientation = from_frame(frame)
                    kind, to_rgb = frame_kind, self._converter(frame, stream)
                if self.timing.constant or frame.pts is None or tick is None:
                    time = number / self.timing.rate
                else:
                    time = max(time, frame.pts * tick - self.timing.start)
                picture = orientation.apply(to_rgb(frame))
                yield time, picture[..., :3] if self._opaque else picture

    def _warn_of_change(self, number: int, before: tuple[object, ...], after: tuple[object, ...]) -> None:
        if not self._warned_of_change:
            names = ("format", "width", "height", "matrix", "range", "rotation")
            changes = [
                f"{name} from {old} to {new}" for name, old, new in zip(names, before, after, strict=True) if old != new
            ]
            LOGGER.warning(
                f"{self.name} changes at frame {number} (numbered from 0): {', '.join(changes)}; frames are converted"
                " as they come, and brought to the size and depth of the first."
            )
        self._warned_of_change = True

    @contextmanager
    def _opened(self) -> Iterator[tuple["InputContainer", "VideoStream"]]:
        try:
            if not isinstance(self._source, Path):
                self._source.seek(0)
            with av.open(file_url(self._source) if isinstance(self._source, Path) else self._source, "r") as container:
                yield container, self._video_stream(container)
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(
                f"{self.name} cannot be read as a video ({reason(error)}); name a whole file that FFmpeg can play."
            ) from error

    def _video_stream(self, container: "InputContainer") -> "VideoStream":
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        # FFmpeg plays text files as ANSI art.
        if not streams or container.format.name == "tty":
            held = "only sound" if container.streams.audio else "no video"
            raise ClipError(f"{self.name} holds {held}; name a file with pictures in it.")
        streams[0].thread_type = "AUTO"
        return streams[0]

    def _packets(self, container: "InputContainer", *streams: "Stream") -> Iterator["Packet[Stream]"]:
        for number, packet in enumerate(container.demux(*streams)):
            if packet.is_corrupt:
                raise ClipError(f"{self.name} is damaged or cut short at packet {number}; fetch or copy it again.")
            # The decoder would take an empty packet, with which AVI repeats a frame, for the end of the stream.
            if packet.size:
                yield packet

    def _survey(self, container: "InputContainer", stream: "VideoStream") -> Timing:
        """Read all packets without decoding, for the number of frames and their timestamps."""
        end = Fraction(0)

        def timestamps() -> Iterator[tuple[Fraction, Fraction]]:
            nonlocal end
            time = Fraction(0)
            for packet in self._packets(container, *container.streams.video, *container.streams.audio):
                duration = (packet.duration or 0) * packet.time_base
                end = max(end, (packet.pts or 0) * packet.time_base + duration)
                if packet.stream_index != stream.index or not _shows_picture(packet):
                    continue
                # AVI stores no presentation timestamps; those that FFmpeg guesses start some frames late.
                timestamp = packet.dts if container.format.name == "avi" or packet.pts is None else packet.pts
                time = time + duration if timestamp is None else timestamp * packet.time_base
                yield time, duration

        timing = measure(
            sort_by_time(timestamps()),
            tick=stream.time_base or Fraction(1),
            rates=[rate for rate in (stream.average_rate, stream.base_rate) if rate],
            frames=self._frames,
        )
        declared = Fraction(container.duration or 0, av.time_base)
        # In other containers, FFmpeg reports a missing end.
        if container.format.name in ("avi", "matroska,webm") and end + 2 / timing.rate < declared:
            raise ClipError(
                f"{self.name} is damaged or cut short: it has {float(end):.2f} seconds of the {float(declared):.2f} "
                "that it says it has; fetch or copy it again."
            )
        return timing

    def _describe(self, container: "InputContainer", stream: "VideoStream") -> ClipInfo:
        frame = next(self._decode(container, stream), None)
        if frame is None:
            raise ClipError(f"{self.name} has no frame that can be decoded; fetch or copy it again.")
        to_rgb = self._converter(frame, stream)
        orientation = from_frame(frame)
        picture = orientation.apply(to_rgb(frame))
        # The header of raw pixels of 32 bits, in AVI that of all codecs, does not say whether the fourth byte is alpha;
        # most programs leave it 0.
        if container.format.name == "avi" or stream.codec_context.name == "rawvideo":
            self._opaque = picture.shape[2] == 4 and not picture[..., 3].any()
        if self._opaque:
            picture = picture[..., :3]
        height, width = picture.shape[:2]
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return ClipInfo(
            width=width,
            height=height,
            fps=self.timing.rate,
            frames=self.timing.count,
            color=to_rgb.color,
            pixel_aspect=1 / aspect if orientation.swap else aspect,
            bit_depth=bit_depth(frame.format),
            codec=stream.codec_context.name,
            container=container.format.name,
            has_alpha=is_transparent(picture),
            has_audio=bool(container.streams.audio),
            rotation=orientation.degrees,
            variable_frame_rate=not self.timing.constant,
        )

    def _converter(self, frame: av.VideoFrame, stream: "VideoStream") -> RgbConverter:
        context = stream.codec_context
        try:
            return RgbConverter(frame, int(context.color_primaries), int(context.color_trc))
        except ClipError as error:
            raise ClipError(f"{self.name}: {error}") from error

    def _decode(self, container: "InputContainer", stream: "VideoStream") -> Iterator[av.VideoFrame]:
        """Decode all frames in display order; a ClipError if one is damaged, or if packets yield too few."""
        decode = _decoder(stream)
        number = 0
        interlaced = False
        try:
            for packet in chain(self._packets(container, stream), [None]):
                for frame in decode(packet):
                    if frame.is_corrupt:
                        raise ClipError(self._damaged_at(number))
                    interlaced = interlaced or frame.interlaced_frame
                    yield frame
                    number += 1
        except av.error.FFmpegError as error:
            raise ClipError(self._damaged_at(number)) from error
        # Each field of an interlaced frame can be a packet.
        if number < self.timing.total and not interlaced:
            raise ClipError(self._damaged_at(number))

    def _damaged_at(self, number: int) -> str:
        return (
            f"{self.name} is damaged: frame {number} of {self.timing.total} (numbered from 0) cannot be decoded; "
            f"fetch or copy it again, or select only frames before that one."
        )


def _shows_picture(packet: "Packet[Stream]") -> bool:
    """The packet yields a frame: it is not dropped by an edit list, and no hidden reference frame of VP8."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)


def _decoder(stream: "VideoStream") -> Callable[["Packet[Stream] | None"], list[av.VideoFrame]]:
    context = stream.codec_context
    if {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1":
        # FFmpeg's native VP8 and VP9 decoders drop the alpha channel.
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name, context.name)
        if name in av.codecs_available:
            context = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
    return context.decode
