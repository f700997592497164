"""Reading clips through FFmpeg.

`AvSource` reads all packets once, as a rule without decoding them, for the number of frames, their rate and damage, and
decodes when frames are asked for. What FFmpeg finds is compared with what the structure of the file says
(`containers.py`), since FFmpeg plays many truncated files without an error.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from heapq import heappop, heappush
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import av.error
from av.stream import Disposition

from wan_vae.errors import ClipError, reason
from wan_vae.io.audio import AudioSource
from wan_vae.io.clip import LARGEST_SIDE, LOGGER, MOST_PIXELS, ClipInfo
from wan_vae.io.color import RgbConverter, bit_depth, is_transparent, kind_of
from wan_vae.io.containers import read_structure
from wan_vae.io.file_names import open_container
from wan_vae.io.orientation import Orientation, Picture, from_frame
from wan_vae.io.packets import Timeline, number_of
from wan_vae.io.timing import Timing, measure, sort_by_time

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_LONGEST_FRAME = 86400  # seconds on average; more is a damaged clock
_CHECKED = ("ffv1", "png", "apng")  # codecs with checksums, which FFmpeg ignores unless told


class AvSource:
    """Reader of files that FFmpeg can play; a `ClipSource`."""

    def __init__(
        self, source: Path | BinaryIO, name: str, frames: tuple[int | None, int | None], fps: Fraction | None
    ) -> None:
        """Read all packets, and decode the first frame.

        A file object must be seekable, and is read from its start. `name` stands for the source in messages; `frames`
        are the first frame and the one after the last, counted after resampling to `fps`. A ClipError if there is no
        video, it is damaged, or it has none of these frames.
        """
        self.name = name
        self._source = source
        self._frames, self._fps = frames, fps
        self.alpha_is_unset = False
        self.scaled: tuple[int, int] | None = None
        self._warned_of_change = False
        self._state = self._read_state()
        self._structure = read_structure(source)
        self._timeline = Timeline(name, joined=self._structure.joined)
        with self._opened() as (container, stream):
            self.timing = self._survey(container, stream)
            self.info = self._describe(container, stream)
            self.left_out = self._others(container, stream)
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
            timing = self.timing
            needed, time = timing.needed, timing.origin
            wanted = islice(self._decode(container, stream), needed.start, needed.stop)
            for number, (shown, frame) in enumerate(wanted, needed.start or 0):
                # H.264 states the matrix at the first frame of a sequence only. It is read in full only where the angle
                # changes: reading the side data of a frame makes it part of a reference cycle, kept until the next
                # collection.
                if frame.key_frame or frame.rotation:
                    rotation = frame.rotation
                frame_kind = (*kind_of(frame), rotation)
                if to_rgb is None or frame_kind != kind:
                    if to_rgb is not None:
                        self._warn_of_change(number, kind, frame_kind)
                    if to_rgb is None or frame_kind[-1] != kind[-1]:
                        orientation = from_frame(frame)
                    size = self.scaled[::-1] if self.scaled and orientation.swap else self.scaled
                    kind, to_rgb = frame_kind, self._converter(frame, stream, size)
                time = timing.origin + number / timing.rate if timing.constant else max(time, shown)
                picture = orientation.apply(to_rgb(frame))
                yield time - timing.start, picture[..., :3] if self.alpha_is_unset else picture

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
            with open_container(self._source) as container:
                stream = self._video_stream(container)
                try:
                    yield container, stream
                finally:
                    # PyAV frees a decoder with the interpreter locked, and its threads, if still at work, wait for that
                    # lock to pass on a message where some library has set `av.logging`, as torchvision does.
                    stream.codec_context.flush_buffers()
        except (av.error.FFmpegError, OSError) as error:
            self._check_unchanged()
            raise ClipError(
                f"{self.name} cannot be read as a video ({reason(error)}); name a whole file that FFmpeg can play."
            ) from error

    def _read_state(self) -> tuple[int, ...]:
        """What changes if the file is written to or replaced."""
        if not isinstance(self._source, Path):
            return ()
        status = self._source.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _check_unchanged(self) -> None:
        try:
            changed = self._read_state() != self._state
        except OSError:
            changed = True
        if changed:
            raise ClipError(f"{self.name} changed while it was read; wait until it is complete.")

    def _video_stream(self, container: "InputContainer") -> "VideoStream":
        """The stream that players show: the default one, else the largest, of those that can be decoded."""
        streams = _pictures(container)
        # FFmpeg plays text files as ANSI art.
        if not streams or container.format.name == "tty":
            held = "only audio" if container.streams.audio else "no video"
            raise ClipError(f"{self.name} holds {held}; name a file with pictures in it.")
        decodable = [stream for stream in streams if stream.codec_context is not None]
        if not decodable:
            raise ClipError(
                f"{self.name} ({container.format.name}) holds pictures of a kind for which the installed FFmpeg has no "
                "decoder; convert it to H.264 or PNG first."
            )
        best = max(decodable, key=_prominence)
        width, height = best.codec_context.width, best.codec_context.height
        if max(width, height) > LARGEST_SIDE or width * height > MOST_PIXELS:
            raise ClipError(
                f"{self.name} declares pictures of {width}x{height} pixels; sides of up to {LARGEST_SIDE} can be read."
            )
        best.thread_type = "AUTO"
        return best

    def _others(self, container: "InputContainer", chosen: "VideoStream") -> tuple[str, ...]:
        """Describe the streams other than the chosen one and the first of audio; warn of further pictures."""
        pictures = [stream for stream in _pictures(container) if stream.index != chosen.index]
        if pictures:
            LOGGER.warning(
                f"{self.name} has {len(pictures) + 1} video streams; number {chosen.index} of {self.info.width}x"
                f"{self.info.height} is read, and left out are those of "
                + ", ".join(_size(stream) for stream in pictures[:5])
                + (f" and {len(pictures) - 5} more." if pictures[5:] else ".")
            )
        counts = Counter[str](stream.type for stream in container.streams if stream.type != "video")
        counts["audio"] -= 1
        counts["chapter"] = len(container.chapters())
        words = {
            "audio": "further audio tracks",
            "subtitle": "subtitles",
            "data": "data tracks",
            "attachment": "attachments",
            "chapter": "chapters",
        }
        return tuple(word for kind, word in words.items() if counts[kind] > 0)

    def _survey(self, container: "InputContainer", stream: "VideoStream") -> Timing:
        """Read all packets, where possible without decoding, for the number of frames and their timestamps."""
        structure, timeline = self._structure, self._timeline
        if structure.damage is not None:
            self._refuse(f"is {structure.damage}")
        timing = self._measure(container, stream)
        if timeline.may_be_pictureless(stream):
            with self._opened() as (reopened, its_stream):
                timeline.find_pictureless(reopened, its_stream, _decoder(its_stream))
            if timeline.pictureless:
                with self._opened() as (reopened, its_stream):
                    timing = self._measure(reopened, its_stream)
        place = {"avi": stream.index, "matroska,webm": _pictures(container).index(stream)}.get(
            container.format.name, stream.id
        )
        lost = structure.packets[place] - timeline.found
        if lost > 0 and place not in structure.trimmed:
            self._refuse(f"is damaged or cut short: {lost} of its {structure.packets[place]} frames cannot be found")
        elif lost > 0:
            LOGGER.warning(f"{self.name} has an edit list, by which {lost} of its frames are left out.")
        if timing.end - timing.start > _LONGEST_FRAME * timing.count:
            raise ClipError(
                f"{self.name} is damaged: its {timing.count} frames take {float(timing.end - timing.start):.3g} "
                "seconds; fetch or copy it again."
            )
        self._compare_lengths(container, timing)
        if timeline.undecodable:
            LOGGER.warning(
                f"{self.name} was cut: {len(timeline.undecodable)} of its frames need others that are not there to be "
                f"decoded and are left out; the other {timing.total} are read."
            )
        return timing

    def _measure(self, container: "InputContainer", stream: "VideoStream") -> Timing:
        try:
            return measure(
                sort_by_time(self._timeline.survey(container, stream, _decoder(stream))),
                tick=stream.time_base or Fraction(1),
                rates=[rate for rate in (stream.average_rate, stream.base_rate) if rate],
                frames=self._frames,
                fps=self._fps,
            )
        finally:
            self._check_unchanged()

    def _refuse(self, fault: str) -> None:
        """Raise a ClipError, or warn where only frames up to some number are wanted, which can be before the damage."""
        if self._frames[1] is None:
            raise ClipError(f"{self.name} {fault}; fetch or copy it again, or select only frames before the damage.")
        LOGGER.warning(f"{self.name} {fault}; make sure that the frames selected are those wanted.")

    def _compare_lengths(self, container: "InputContainer", timing: Timing) -> None:
        """Warn where the header declares more than is there, or refuse where pictures are missing there."""
        missing, end = self._structure.missing, self._timeline.end
        # In other containers, FFmpeg reports a missing end.
        hinted = container.format.name in ("avi", "matroska,webm", "flv")
        declared = Fraction(container.duration or 0, av.time_base) if hinted else Fraction(0)
        if missing and container.format.name == "matroska,webm" and end + 1 / (2 * timing.rate) < declared:
            raise ClipError(
                f"{self.name} is damaged or cut short: it has {float(end):.2f} seconds of the {float(declared):.2f} "
                "that it says it has; fetch or copy it again."
            )
        if missing or end + 2 / timing.rate < declared:
            lack = f"{missing} bytes" if missing else f"{float(declared - end):.2f} seconds"
            LOGGER.warning(
                f"{self.name} says that it is {lack} longer than it is; the {timing.total} frames that are there are "
                "read."
            )

    def _describe(self, container: "InputContainer", stream: "VideoStream") -> ClipInfo:
        frame, self._timeline.first = self._timeline.first, None  # which takes memory
        if frame is None:
            raise ClipError(f"{self.name} is damaged: it has no frame that can be decoded; fetch or copy it again.")
        to_rgb = self._converter(frame, stream)
        orientation = from_frame(frame)
        picture = orientation.apply(to_rgb(frame))
        # The header of raw pixels of 32 bits, in AVI that of all codecs, does not say whether the fourth byte is alpha;
        # most programs leave it 0.
        if container.format.name == "avi" or stream.codec_context.name == "rawvideo":
            self.alpha_is_unset = picture.shape[2] == 4 and not picture[..., 3].any()
        if self.alpha_is_unset:
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

    def _converter(
        self, frame: av.VideoFrame, stream: "VideoStream", size: tuple[int, int] | None = None
    ) -> RgbConverter:
        context = stream.codec_context
        try:
            return RgbConverter(frame, int(context.color_primaries), int(context.color_trc), size)
        except ClipError as error:
            raise ClipError(f"{self.name}: {error}") from error

    def _decode(self, container: "InputContainer", stream: "VideoStream") -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decode all frames in display order, with their times; a ClipError if one is damaged or missing."""
        context = _decoder(stream)
        number = 0
        for part in self._timeline.packets(container, stream):
            times: list[Fraction] = []  # of the pictures that have not come out of the decoder
            begun = False
            for packet, time in chain(part, [(None, None)]):
                if time is not None:
                    heappush(times, time)
                try:
                    frames = context.decode(packet)
                except av.error.FFmpegError as error:
                    if self._timeline.undecodable and not begun:
                        continue
                    self._check_unchanged()
                    raise ClipError(self._damaged_at(number)) from error
                for frame in frames:
                    if number_of(frame) in self._timeline.undecodable:
                        continue
                    if frame.is_corrupt:
                        self._check_unchanged()
                        raise ClipError(self._damaged_at(number))
                    begun = True
                    yield heappop(times) if times else self.timing.end, frame
                    number += 1
            context.flush_buffers()
        self._check_unchanged()
        if number < self.timing.total:
            raise ClipError(self._damaged_at(number))

    def _damaged_at(self, number: int) -> str:
        return (
            f"{self.name} is damaged: frame {number} of {self.timing.total} (numbered from 0"
            f"{', before resampling' if self._fps else ''}) cannot be decoded; "
            f"fetch or copy it again, or select only frames before that one."
        )


def _pictures(container: "InputContainer") -> list["VideoStream"]:
    """Streams of video, without covers and thumbnails."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & covers]


def _prominence(stream: "VideoStream") -> tuple[bool, bool, int]:
    dependent = bool(stream.disposition & Disposition.dependent)
    area = stream.codec_context.width * stream.codec_context.height
    return not dependent, bool(stream.disposition & Disposition.default), area


def _size(stream: "VideoStream") -> str:
    context = stream.codec_context
    return f"{context.width}x{context.height}" if context is not None else "an unknown kind"


def _decoder(stream: "VideoStream") -> "VideoCodecContext":
    context = stream.codec_context
    if {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1":
        # FFmpeg's native VP8 and VP9 decoders drop the alpha channel.
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
        if name in av.codecs_available:
            context = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
    context.copy_opaque = True
    if context.name in _CHECKED:
        context.options = {"err_detect": "crccheck+explode"}
    return context
