"""The packets of a video stream and the times of its pictures, before anything is decoded.

Not every packet is a picture: recordings that were cut begin with some whose references are gone, a packet can be the
second field of a picture, or repeat the one before. And not every clock runs on: where recordings were joined, it
starts again. `Timeline.survey` and `Timeline.find_pictureless` find this, and `Timeline.packets` applies it.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, count, groupby, islice
from typing import TYPE_CHECKING, NamedTuple, cast

import av.error

from wan_vae.errors import ClipError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_JOINABLE = ("mpegts", "mpeg")  # files that can be joined end to end, each with a clock of its own
_LONGEST_START = 1000  # packets to decode at most in search of the first picture
_LOOKED_AT = 16  # packets after the first picture; codecs move no picture by more places than this
_DECODED = 64  # packets after the first picture to decode if some of those may not be pictures
_HALF = Fraction(3, 4)  # of the time a frame takes; second fields come sooner
_SAMPLE = 128  # packets that tell whether fields are packets of their own
_DELAY = 32  # packets at most that a decoder with threads takes in before it yields a frame
_LONGEST_HEADER = 19  # bytes, of a picture of MPEG-4 without more; FFmpeg's own limit
_LAYER = re.compile(r".{9}(?:0|1.{7})(?:1111.{16}|(?!1111).{4})(?:0|1.{3}(?:0|1.{79}))..1(.{16})")
"""The header of a stream of MPEG-4 up to its resolution of time: 9 bits, identifier, aspect, control, shape."""
_JUMP = 10  # seconds by which a clock that runs on may jump; FFmpeg's own limit


class Entry(NamedTuple):
    """A packet of the stream, in decoding order."""

    number: int
    part: int  # counts how often the clock has started again
    packet: "Packet[VideoStream]"
    is_shown: bool  # it yields a picture, if it can be decoded
    time: Fraction | None  # in seconds, on the clock of its part
    duration: Fraction


class Timeline:
    """Times of the pictures of one stream.

    Attributes:
        undecodable: Numbers of the packets that are no pictures, since their references are missing.
        pictureless: Numbers of the packets that are no pictures, since they belong to the one before.
        repeating: Numbers of the packets of MPEG-4 that say that nothing has changed since the picture before.
        halves: Numbers of the packets of H.264 that come sooner after the one before than a frame takes, as second
            fields do.
        found: Number of packets that are not hidden by an edit list.
        first: The first picture of a surveyed stream, None if none of its first packets can be decoded.
    """

    def __init__(self, name: str, *, joined: bool) -> None:
        """`name` stands for the source in messages; `joined` tells that the clock can start again in any container."""
        self.undecodable: set[int] = set()
        self.pictureless: set[int] = set()
        self.repeating: set[int] = set()
        self.halves: set[int] = set()
        self.found = 0
        self.first: VideoFrame | None = None
        self._ends: dict[Fraction, int] = {}  # latest end of a packet, by time base
        self._name = name
        self._joined = joined
        self._offsets: list[Fraction] = []  # seconds to add to the times of each part

    @property
    def end(self) -> Fraction:
        """Latest end of a packet of any stream, in seconds on the clock of its part."""
        return max((ticks * unit for unit, ticks in self._ends.items()), default=Fraction(0))

    def survey(
        self, container: "InputContainer", stream: "VideoStream", decoder: "VideoCodecContext"
    ) -> Iterator[tuple[Fraction, Fraction]]:
        """Read all packets, decode the first of each part, and yield time and duration of each picture.

        Pictures are in decoding order. A ClipError if packets are damaged. The decoder must copy the `opaque` of
        packets to their frames, for `number_of`.
        """
        self.undecodable.clear()
        self._offsets.clear()
        end, period = Fraction(0), 1 / (stream.average_rate or Fraction(24))
        has_parts = self._has_parts(container)
        entries = self._noted(self._entries(container, stream), stream)
        for part, group in groupby(entries, key=lambda entry: entry.part):
            head = self._head(group, container, decoder)
            starts = [entry.time for entry in head if self._is_picture(entry) and entry.time is not None]
            self._offsets.append(end - min(starts, default=end) if part else Fraction(0))
            for entry, time in self._timed(chain(head, group)):
                if time is not None:
                    ends = count(entry.number + 1)  # packets without a picture show this one on
                    packets = next(number for number in ends if number not in self.pictureless) - entry.number
                    yield time, entry.duration * packets
                    if has_parts:
                        end = max(end, time + (entry.duration or period) * packets)
        if not self.found:
            raise ClipError(f"{self._name} is damaged or cut short: it has no frames; fetch or copy it again.")

    def may_be_pictureless(self, stream: "VideoStream") -> bool:
        """Whether a surveyed stream can have packets for `find_pictureless` to find."""
        if stream.codec_context.name == "mpeg4":
            return bool(self.repeating)
        return stream.codec_context.name == "h264" and self.first is not None and self.first.interlaced_frame

    def find_pictureless(
        self, container: "InputContainer", stream: "VideoStream", decoder: "VideoCodecContext"
    ) -> None:
        """Decode a stream to find the packets that belong to the picture before: second fields, and repetitions.

        Only decoding tells. It ends early where fields are not packets of their own. Damage is not looked for.
        """
        decoded, shown = set[int](), set[int]()
        of_fields = decoder.name == "h264"
        for _, group in groupby(self._entries(container, stream), key=lambda entry: entry.part):
            for entry in chain(group, [None]):
                try:
                    frames = decoder.decode(entry and entry.packet)
                except av.error.FFmpegError:
                    continue
                shown.update(number_of(frame) for frame in frames)
                if entry is not None:
                    decoded.add(entry.number)
                if of_fields and not self.halves and len(decoded) == _SAMPLE <= len(shown) + _DELAY:
                    decoder.flush_buffers()
                    return
            decoder.flush_buffers()
        rest = decoded - shown
        if not of_fields:
            # Where a packet holds two pictures, as of DivX, one that seems to repeat stands for the second.
            self.pictureless = rest & self.repeating
        elif self.halves or 4 * len(rest) >= len(decoded):
            # Where packets have no times, many must be without a picture: one that lacks here and there is damaged.
            self.pictureless = {number for number in rest & (self.halves or rest) if number - 1 in shown}

    def packets(
        self, container: "InputContainer", stream: "VideoStream"
    ) -> Iterator[Iterator[tuple["Packet[VideoStream]", Fraction | None]]]:
        """Yield the parts of a surveyed stream: packets, and the times of those that are pictures."""
        for _, group in groupby(self._entries(container, stream), key=lambda entry: entry.part):
            yield ((entry.packet, time) for entry, time in self._timed(group))

    def _noted(self, entries: Iterator[Entry], stream: "VideoStream") -> Iterator[Entry]:
        """Pass the entries of a survey on, count them, and note which can be without a picture of their own."""
        self.found = 0
        repeats, context = _repeats_of(stream), stream.codec_context
        limit = _HALF / context.framerate if context.name == "h264" and context.framerate else None
        before: Fraction | None = None
        for entry in entries:
            self.found += not entry.packet.is_discard
            if limit is not None:
                clock = _clock(entry.packet)
                if clock is not None and before is not None and 0 < clock - before < limit:
                    self.halves.add(entry.number)
                before = clock
            if repeats(entry.packet):
                self.repeating.add(entry.number)
            yield entry

    def _has_parts(self, container: "InputContainer") -> bool:
        return self._joined or container.format.name in _JOINABLE

    def _is_picture(self, entry: Entry) -> bool:
        return entry.is_shown and entry.number not in self.undecodable

    def _timed(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Fraction | None]]:
        time = Fraction(0)
        for entry in entries:
            if not self._is_picture(entry):
                time += entry.duration if entry.number in self.pictureless else 0
                yield entry, None
                continue
            time = time + entry.duration if entry.time is None else entry.time + self._offsets[entry.part]
            yield entry, time

    def _entries(self, container: "InputContainer", stream: "VideoStream") -> Iterator[Entry]:
        joinable = container.format.name in _JOINABLE
        has_parts = self._has_parts(container)
        # AVI stores no presentation times; those that FFmpeg guesses start some pictures late.
        by_decoding = container.format.name == "avi"
        behind: deque[Fraction] = deque(maxlen=2)
        ahead: deque[Packet[VideoStream]] = deque()
        gaps = _Gaps(self._name, stream)
        part = number = 0
        for packet in chain(self._read(container, stream, joinable), [None]):
            if packet is not None:
                ahead.append(packet)
            while len(ahead) > (0 if packet is None else 1):
                if has_parts and _starts_again(behind, [clock for clock in map(_clock, ahead) if clock is not None]):
                    behind.clear()
                    part += 1
                current = ahead.popleft()
                if joinable:
                    gaps.check(number, current, behind)
                if has_parts and (clock := _clock(current)) is not None:
                    behind.append(clock)
                timestamp = current.dts if by_decoding or current.pts is None else current.pts
                time = None if timestamp is None else timestamp * current.time_base
                current.opaque = (number,)  # PyAV tells objects apart by identity, and equal numbers are one
                duration = (current.duration or 0) * current.time_base
                is_shown = number not in self.pictureless and _shows_picture(current)
                yield Entry(number, part, current, is_shown, time, duration)
                number += 1

    def _read(
        self, container: "InputContainer", stream: "VideoStream", joinable: bool
    ) -> Iterator["Packet[VideoStream]"]:
        for number, packet in enumerate(container.demux()):
            # In a stream that can be joined, a mismatch of counters that the joint explains is marked as damage too.
            if packet.is_corrupt and not joinable:
                raise ClipError(f"{self._name} is damaged or cut short at packet {number}; fetch or copy it again.")
            if packet.pts is not None:
                end, unit = packet.pts + (packet.duration or 0), packet.time_base
                self._ends[unit] = max(self._ends.get(unit, end), end)
            # The decoder would take an empty packet, with which AVI repeats a frame, for the end of the stream.
            if packet.size and packet.stream_index == stream.index:
                yield cast("Packet[VideoStream]", packet)

    def _head(self, entries: Iterator[Entry], container: "InputContainer", decoder: "VideoCodecContext") -> list[Entry]:
        """Decode the first packets of a part until it is known which are pictures, and return those taken."""
        head: list[Entry] = []
        whole: set[int] = set()  # numbers of the packets that yielded an undamaged picture
        broken = False
        first: Entry | None = None

        def decode(packet: "Packet[VideoStream] | None") -> None:
            nonlocal broken
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError:
                broken = True
                return
            for frame in frames:
                if frame.is_corrupt:
                    broken = True
                else:
                    whole.add(number_of(frame))
                    self.first = self.first or frame

        for entry in islice(entries, _LONGEST_START):
            head.append(entry)
            decode(entry.packet)
            if whole:
                break
        fed = len(head)
        if not whole:
            decode(None)
        if whole:
            first = next(entry for entry in head if entry.number in whole)
            head.extend(islice(entries, _LOOKED_AT))
            if any(_is_earlier(entry, first) for entry in head):
                head.extend(islice(entries, _DECODED))
                for entry in head[fed:]:
                    decode(entry.packet)
                decode(None)
                # A damaged picture at the start of a file that was not cut is no reason to go on without it.
                is_whole = not broken and container.format.name in _JOINABLE
                if head[0].packet.is_keyframe and head[0].number not in whole and not is_whole:
                    raise ClipError(
                        f"{self._name} is damaged: its first frame cannot be decoded; fetch or copy it again."
                    )
                self.undecodable |= {e.number for e in head if _is_earlier(e, first)} - whole
        elif head and head[0].part:
            self.undecodable |= {entry.number for entry in head}
        decoder.flush_buffers()
        return head


def number_of(frame: "VideoFrame") -> int:
    """Number of the packet that yielded a frame; -1 if the decoder made it up."""
    (number,) = cast("tuple[int]", frame.opaque or (-1,))
    return number


class _Gaps:
    """Tells a mismatch of counters where recordings were joined from one where packets were lost.

    Every lost picture leaves a gap in the times; damage within a picture is for the decoder to find.
    """

    def __init__(self, name: str, stream: "VideoStream") -> None:
        self._name = name
        self._longest = Fraction(3, 2) / stream.average_rate if stream.average_rate else Fraction(0)
        self._marked = self._gap = -10

    def check(self, number: int, packet: "Packet[VideoStream]", behind: deque[Fraction]) -> None:
        """A ClipError if a packet marked as damaged lies at a gap; `behind` are the times of those before it."""
        clock = _clock(packet)
        if clock is not None and behind and clock - behind[-1] > self._longest:
            self._gap = number
        if packet.is_corrupt:
            self._marked = number
        if self._marked >= 0 and -1 <= self._gap - self._marked <= 3:
            raise ClipError(
                f"{self._name} is damaged: packets are missing at frame {number}; fetch or copy it again, or select "
                "only frames before that one."
            )


def _clock(packet: "Packet[VideoStream]") -> Fraction | None:
    """Seconds that increase from packet to packet."""
    timestamp = packet.pts if packet.dts is None else packet.dts
    return None if timestamp is None else timestamp * packet.time_base


def _starts_again(behind: "deque[Fraction]", ahead: list[Fraction]) -> bool:
    """The clock runs from other values on; two packets say so, since the time of one can be damaged."""
    return bool(behind and ahead) and (max(ahead) < min(behind) or min(ahead) > max(behind) + _JUMP)


def _is_earlier(entry: Entry, first: Entry) -> bool:
    """A packet is before the first picture in decoding order or in time, or may be."""
    unknown = entry.time is None or first.time is None or entry.time < first.time
    return entry.is_shown and (entry.number < first.number or (entry.number > first.number and unknown))


def _repeats_of(stream: "VideoStream") -> Callable[["Packet[VideoStream]"], bool]:
    """What tells whether a packet is no more than a header of MPEG-4's that its picture is not coded.

    ISO/IEC 14496-2, 6.2.3 and 6.2.5: the header of the stream has the resolution of time, by which it is as long.
    """
    context = stream.codec_context
    header = (context.extradata or b"") if context.name == "mpeg4" else b""
    places = re.search(b"\0\0\1[\x20-\x2f]", header)
    layer = places and _LAYER.match(_bits(header[places.end() : places.end() + 40]))
    if not layer:
        return lambda _: False
    length = max(1, (int(layer[1], 2) - 1).bit_length())
    uncoded = re.compile(rf"..1*01.{{{length}}}10(01*)?")

    def repeats(packet: "Packet[VideoStream]") -> bool:
        if packet.size > _LONGEST_HEADER:
            return False
        data = bytes(packet)
        return data.startswith(b"\0\0\1\xb6") and uncoded.fullmatch(_bits(data[4:])) is not None

    return repeats


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _shows_picture(packet: "Packet[VideoStream]") -> bool:
    """The packet yields a frame: it is not dropped by an edit list, and no hidden reference frame of VP8."""
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)
