"""Reading clips through FFmpeg.

How long a file says it is: the surest sign of a download or a copy that was cut short.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import av.error
from av.stream import Disposition

from wan_vae.errors import ClipError
from wan_vae.io.audio import AudioSource, file_url, reason
from wan_vae.io.clip import ClipInfo, Finisher, Notices, Selection, notice_variable_rate, selected_info
from wan_vae.io.color import RgbConverter, bit_depth, is_transparent
from wan_vae.io.orientation import Orientation, Picture, from_frame
from wan_vae.io.timing import Timing, in_order, measure, resample

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp")


def check_whole(path: Path) -> None:
    """Refuse a file that is empty or shorter than its own outermost structure says.

    Knows MP4 and MOV, Matroska and WebM, AVI, WebP and GIF; of others only emptiness is seen.

    Raises:
        ClipError: The file is empty or cut short.
    """
    actual = path.stat().st_size
    if actual == 0:
        raise ClipError(f"{path} is empty (0 bytes); name a video or an image.")
    with path.open("rb") as file:
        declared = _declared_length(file, actual)
    if declared > actual:
        raise ClipError(
            f"{path} is cut short: it has {actual} bytes and should have {declared} or more; fetch or copy it again."
        )


def _declared_length(file: BinaryIO, actual: int) -> int:
    head = file.read(12)
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        # Recorders that stream leave the size at 0 or at its largest; the padding of an odd size is often left out.
        return 0 if size in (0, 0xFFFFFFFF) else 8 + size - size % 2
    if head[4:8] in _ISO_BOXES:
        return _iso_length(file, actual)
    if head.startswith(b"GIF8"):
        file.seek(-min(actual, 64), 2)
        # A semicolon ends a GIF; some programs pad it.
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
        if size < 8:  # 0: to the end of the file; otherwise no box at all
            return 0
        end += size
    return end


def _matroska_length(file: BinaryIO) -> int:
    file.seek(len(_EBML))
    header_size = _element_size(file)
    if header_size is None:
        return 0
    file.seek(header_size, 1)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return 0
    size = _element_size(file)
    return 0 if size is None else file.tell() + size


def _element_size(file: BinaryIO) -> int | None:
    """The size at the file's position, None where it is unknown because the file was written as a live stream."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    size = int.from_bytes(first + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return None if size == (1 << 7 * length) - 1 else size


# FFmpeg's own VP8 and VP9 decoders leave out transparency, which these keep.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class AvSource:
    """A file FFmpeg can read, as a `Source`."""

    def __init__(self, path: Path, selection: Selection, notices: Notices) -> None:
        """Survey the file: all its packets, and its first picture.

        Raises:
            ClipError: It holds no video, is damaged where that can be seen, or has none of the selected pictures.
        """
        self._path = path
        self._selection = selection
        self._notices = notices
        check_whole(path)
        with self._opened() as (container, stream):
            self._timing = self._survey(container, stream)
        self._duration = self._timing.end - self._timing.start
        with self._opened() as (container, stream):
            self.info = selected_info(self._describe(container, stream), selection, self._duration)
        self.audio = AudioSource(path, self._timing.start, self._timing.end) if self.info.has_audio else None
        notice_variable_rate(path, self.info, selection, notices)

    def pictures(self) -> Generator[Picture, None, None]:
        """The wanted pictures, as `Source` says."""
        with self._opened() as (container, stream):
            yield from resample(self._timed_pictures(container, stream), self._duration, self._selection.fps)

    @contextmanager
    def _opened(self) -> Iterator[tuple["InputContainer", "VideoStream"]]:
        try:
            with av.open(file_url(self._path)) as container:
                yield container, self._video_stream(container)
        except (av.error.FFmpegError, OSError) as error:
            raise ClipError(
                f"{self._path} cannot be read as a video ({reason(error)}); name a whole file that FFmpeg can play."
            ) from error

    def _video_stream(self, container: "InputContainer") -> "VideoStream":
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        # FFmpeg plays text files too, as the terminal art of bulletin boards.
        if not streams or container.format.name == "tty":
            held = "only sound" if container.streams.audio else "no video"
            raise ClipError(f"{self._path} holds {held}; name a file with pictures in it.")
        streams[0].thread_type = "AUTO"
        return streams[0]

    def _packets(self, container: "InputContainer", *streams: "Stream") -> Iterator["Packet[Stream]"]:
        for number, packet in enumerate(container.demux(*streams)):
            if packet.is_corrupt:
                raise ClipError(f"{self._path} is damaged or cut short at packet {number}; fetch or copy it again.")
            # Empty packets, which AVI uses to show a picture for longer, would tell the decoder that the end is here.
            if packet.size:
                yield packet

    def _survey(self, container: "InputContainer", stream: "VideoStream") -> Timing:
        """Go through all packets without decoding any, for how many pictures there are and when they are shown."""
        end = Fraction(0)

        def shown() -> Iterator[tuple[Fraction, Fraction]]:
            nonlocal end
            time = Fraction(0)
            for packet in self._packets(container, *container.streams.video, *container.streams.audio):
                duration = (packet.duration or 0) * packet.time_base
                end = max(end, (packet.pts or 0) * packet.time_base + duration)
                if packet.stream_index != stream.index or not _shows_picture(packet):
                    continue
                # AVI stores no times of showing; FFmpeg's guesses at them start some frames late.
                timestamp = packet.dts if container.format.name == "avi" or packet.pts is None else packet.pts
                time = time + duration if timestamp is None else timestamp * packet.time_base
                yield time, duration

        timing = measure(
            in_order(shown()),
            tick=stream.time_base or Fraction(1),
            rates=[rate for rate in (stream.average_rate, stream.base_rate) if rate],
            frames=self._selection.frames,
        )
        declared = Fraction(container.duration or 0, av.time_base)
        # FFmpeg itself notices a missing end in other containers.
        if container.format.name in ("avi", "matroska,webm") and end + 2 / timing.rate < declared:
            raise ClipError(
                f"{self._path} is damaged or cut short: it has {float(end):.2f} seconds of the {float(declared):.2f} "
                "that it says it has; fetch or copy it again."
            )
        return timing

    def _describe(self, container: "InputContainer", stream: "VideoStream") -> ClipInfo:
        frame = next(self._frames(container, stream), None)
        if frame is None:
            raise ClipError(f"{self._path} has no frame that can be decoded; fetch or copy it again.")
        to_rgb = self._converter(frame, stream)
        orientation = from_frame(frame)
        picture = orientation.apply(to_rgb(frame))
        height, width = picture.shape[:2]
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return ClipInfo(
            width=width,
            height=height,
            fps=self._timing.rate,
            frames=self._timing.count,
            color=to_rgb.color,
            pixel_aspect=1 / aspect if orientation.swap else aspect,
            bit_depth=bit_depth(frame.format),
            codec=stream.codec_context.name,
            container=container.format.name,
            has_alpha=is_transparent(picture),
            has_audio=bool(container.streams.audio),
            rotation=orientation.degrees,
            variable_frame_rate=not self._timing.constant,
        )

    def _converter(self, frame: av.VideoFrame, stream: "VideoStream") -> RgbConverter:
        context = stream.codec_context
        try:
            return RgbConverter(frame, int(context.color_primaries), int(context.color_trc))
        except ClipError as error:
            raise ClipError(f"{self._path}: {error}") from error

    def _timed_pictures(self, container: "InputContainer", stream: "VideoStream") -> Iterator[tuple[Fraction, Picture]]:
        """The selected frames, finished, each with its seconds after the first."""
        finish = Finisher(self._path, self.info, self._notices)
        first, stop = self._selection.frames
        to_rgb: RgbConverter | None = None
        orientation: Orientation | None = None
        time = Fraction(0)
        # Not the frames' own: those the decoder held back until the end have none.
        tick = stream.time_base
        for number, frame in enumerate(islice(self._frames(container, stream), first, stop)):
            to_rgb = to_rgb or self._converter(frame, stream)
            # Once: a frame asked for its side data is part of a reference cycle and stays until the next collection.
            orientation = orientation or from_frame(frame)
            if self._timing.constant or frame.pts is None or tick is None:
                time = number / self._timing.rate
            else:
                time = max(time, frame.pts * tick - self._timing.start)
            yield time, finish(orientation.apply(to_rgb(frame)))

    def _frames(self, container: "InputContainer", stream: "VideoStream") -> Iterator[av.VideoFrame]:
        """Every frame, in the order of showing.

        Raises:
            ClipError: A frame is damaged, or some packets gave none.
        """
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
        # The two fields of an interlaced frame can be a packet each.
        if number < self._timing.total and not interlaced:
            raise ClipError(self._damaged_at(number))

    def _damaged_at(self, number: int) -> str:
        return (
            f"{self._path} is damaged: frame {number} of {self._timing.total} (numbered from 0) cannot be decoded; "
            f"fetch or copy it again, or select only frames before that one."
        )


def _shows_picture(packet: "Packet[Stream]") -> bool:
    """Whether a packet is to give a frame: not when an edit list leaves it out, nor for VP8's hidden references."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)


def _decoder(stream: "VideoStream") -> Callable[["Packet[Stream] | None"], list[av.VideoFrame]]:
    context = stream.codec_context
    if {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1":
        name = _ALPHA_DECODERS.get(context.name, context.name)
        if name in av.codecs_available:
            context = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
    return context.decode
