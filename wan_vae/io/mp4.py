"""The structure of MP4 and MOV files, with and without fragments."""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_IN_MOOF = {b"mfhd", b"traf", b"meta", b"pssh", b"uuid", b"free", b"skip", b"udta"}
_IN_TRAF = {b"tfhd", b"tfdt", b"trun", b"sdtp", b"saiz", b"saio", b"senc", b"sgpd", b"sbgp", b"subs", b"uuid", b"meta"}

SEARCHED = 1 << 26  # bytes to search at most for what should not be there


@dataclass
class Structure:
    """What a file says of its own contents: the result of `containers.read_structure`.

    Packets are counted by track: its id in MP4, its place among all streams in AVI, among video tracks in Matroska.

    Attributes:
        packets: Packets that the file should yield; a track that is not there is unknown.
        trimmed: Tracks of MP4 whose edit list leaves out some of these packets on purpose.
        damage: How and where the structure is broken such that packets are missing; None if it is whole.
        joined: Several files follow each other, as Matroska allows, each with a clock of its own.
        missing: Bytes that the header declares beyond the end of the file. They need not have held pictures.
    """

    packets: Counter[int] = field(default_factory=Counter)
    trimmed: set[int] = field(default_factory=set)
    damage: str | None = None
    joined: bool = False
    missing: int = 0


class Mp4:
    """Samples by the tables of all tracks and of all fragments."""

    def __init__(self, file: BinaryIO, actual: int) -> None:
        self.structure = Structure()
        self._file, self._actual = file, actual
        self._sizes: dict[int, int] = {}  # default size of a sample in fragments, by track
        position, fragment = 0, -1  # the latter is the size of the last fragment's samples
        while position + 8 <= actual:
            file.seek(position)
            header = file.read(20)
            size, kind, start = int.from_bytes(header[:4], "big"), header[4:8], position + 8
            if size == 1:  # the size is 64 bits wide and follows the name
                size, start = int.from_bytes(header[8:16], "big"), position + 16
            elif size == 0:
                size = actual - position
            end = position + size
            named = all(32 <= byte < 127 for byte in kind)
            if end < start or not named or (header[12:16] == b"mfhd" and kind != b"moof"):
                break
            self.structure.missing = max(0, end - actual)
            if end > actual and (kind in (b"moov", b"moof") or (kind == b"mdat" and fragment >= 0)):
                self.structure.damage = f"cut short: it has {actual} bytes and should have {end} or more"
            if kind == b"moov":
                self._movie(self._content(start, end))
            elif kind == b"moof":
                fragment = self._fragment(self._content(start, end), position)
            elif kind == b"mdat" and fragment >= 0:
                self._check_swallowed(start + fragment, min(end, actual))
            position = end
        if fragment >= 0 or self._sizes:
            self._check_swallowed(position, actual)

    def _content(self, start: int, end: int) -> memoryview:
        self._file.seek(start)
        return memoryview(self._file.read(min(end, self._actual, start + 4 * SEARCHED) - start))

    def _damaged(self, position: int) -> None:
        self.structure.damage = self.structure.damage or f"damaged at byte {position} of {self._actual}"

    def _check_swallowed(self, start: int, end: int) -> None:
        """Note damage if a fragment lies where none is expected."""
        if start < end and b"mfhd" in bytes(self._content(start, min(end, start + SEARCHED))):
            self._damaged(start)

    def _movie(self, movie: memoryview) -> None:
        scale = 1
        for kind, box in _boxes(movie):
            if kind == b"mvhd":
                scale = _number(box, 20 if _is_wide(box) else 12, 4)
            elif kind == b"mvex":
                self._sizes |= {
                    _number(trex, 4, 4): _number(trex, 16, 4) for key, trex in _boxes(box) if key == b"trex"
                }
            elif kind == b"trak":
                self._track(box, scale)

    def _track(self, track: memoryview, movie_scale: int) -> None:
        none = memoryview(b"")
        boxes = dict(_boxes(track))
        for parent in (b"edts", b"mdia", b"minf", b"stbl"):
            boxes |= dict(_boxes(boxes.get(parent, none)))
        header, media, edits = (boxes.get(kind, none) for kind in (b"tkhd", b"mdhd", b"elst"))
        wide = _is_wide(header)
        number, shown = _number(header, 20 if wide else 12, 4), _number(header, 28 if wide else 20, 8 if wide else 4)
        sizes = boxes.get(b"stsz") or boxes.get(b"stz2") or none
        samples = _number(sizes, 8, 4)
        if b"stsz" in boxes and not _number(sizes, 4, 4):
            samples = (len(sizes) - 12) // 4  # the length of the table, since its count can be damaged
        times = boxes.get(b"stts", none)[8:]
        counted = duration = 0
        for count, step in struct.iter_unpack(">II", times[: len(times) // 8 * 8]):
            counted, duration = counted + count, duration + count * step
        consistent = counted == samples
        scale = _number(media, 20 if _is_wide(media) else 12, 4)
        layout = ">QqI" if _is_wide(edits) else ">IiI"
        spans = edits[8 : 8 + (len(edits) - 8) // struct.calcsize(layout) * struct.calcsize(layout)] if edits else none
        lengths = [(length, begin) for length, begin, _ in struct.iter_unpack(layout, spans)]
        kept = sum(length for length, begin in lengths if begin >= 0)
        # An edit list that leaves out pictures does so on purpose if the duration of the track says the same.
        trimmed = bool(lengths) and (kept + 2) * scale < duration * movie_scale
        if trimmed and consistent and abs(sum(length for length, _ in lengths) - shown) <= 1:
            self.structure.trimmed.add(number)
        self.structure.packets[number] += samples

    def _fragment(self, fragment: memoryview, position: int) -> int:
        """Count the samples of a fragment, and return their size in bytes."""
        total = 0
        for kind, box in _boxes(fragment):
            if kind not in _IN_MOOF:
                self._damaged(position)
            if kind == b"traf":
                total += self._run(box, position)
        return total

    def _run(self, box: memoryview, position: int) -> int:
        total = number = size = 0
        for kind, content in _boxes(box):
            flags = _number(content, 1, 3)
            if kind == b"tfhd":
                number = _number(content, 4, 4)
                size = self._sizes.get(number, 0)
                if flags & 0x10:
                    size = _number(content, 8 + 8 * (flags & 1) + 4 * sum(flags >> bit & 1 for bit in (1, 3)), 4)
            elif kind == b"trun":
                count, fields = _number(content, 4, 4), sum(flags >> bit & 1 for bit in range(8, 12))
                table = content[8 + 4 * (flags & 1) + 4 * (flags >> 2 & 1) :]
                if len(table) != 4 * fields * count:
                    self._damaged(position)
                    continue
                self.structure.packets[number] += count
                first = flags >> 8 & 1
                sizes = [_number(table, 4 * (fields * n + first), 4) for n in range(count)] if flags & 0x200 else [size]
                total += sum(sizes) if flags & 0x200 else size * count
            elif kind not in _IN_TRAF:
                self._damaged(position)
        if self._sizes and number not in self._sizes:
            self._damaged(position)
        return total


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kinds and contents of the boxes in `data`; one that does not fit ends them and has no kind."""
    position = 0
    while position + 8 <= len(data):
        size, start = _number(data, position, 4), position + 8
        if size == 1:
            size, start = _number(data, position + 8, 8), position + 16
        if not start <= position + size <= len(data):
            yield b"", data[position:]
            return
        yield bytes(data[position + 4 : position + 8]), data[start : position + size]
        position += size


def _is_wide(box: memoryview) -> bool:
    """Times and durations in the box have 64 bits."""
    return _number(box, 0, 1) == 1


def _number(data: memoryview, position: int, length: int) -> int:
    """A big-endian number, 0 where `data` is too short."""
    return int.from_bytes(data[position : position + length], "big")
