"""What the structure of a file says of its contents, read without FFmpeg.

FFmpeg plays damaged and truncated files as well as it can, and skips what it cannot read without a word.
`read_structure` counts the packets of AVI, Matroska and MP4 files by their own tables, so that a reader can tell what
was skipped.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from wan_vae.io.mp4 import SEARCHED, Mp4, Structure

_EBML = b"\x1a\x45\xdf\xa3"


def read_structure(source: Path | BinaryIO) -> Structure:
    """Walk through the structure of an AVI, Matroska, WebM, MP4 or MOV file; other files yield an empty result."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        actual = file.seek(0, 2)
        file.seek(0)
        head = file.read(12)
        if head.startswith(b"RIFF") and head.endswith(b"AVI "):
            return _Avi(file, actual).structure
        if head.startswith(_EBML):
            return _Matroska(file, actual).structure
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp"):
            return Mp4(file, actual).structure
        return Structure()


_MOST_DEPTH = 16  # of lists in lists of AVI; four are usual


class _Avi:
    """Chunks of RIFF lists, and the index `idx1` at the end, of which one can be damaged."""

    def __init__(self, file: BinaryIO, actual: int) -> None:
        self.structure = Structure()
        self._file, self._actual = file, actual
        self._lengths: list[int] = []  # of the streams, as their headers declare
        # Chunks with data: empty ones stand for the picture before them.
        self._found: Counter[int] = Counter()
        self._empty: Counter[int] = Counter()
        self._indexed: Counter[int] = Counter()
        self._broken = False  # something else than a chunk lies between the chunks
        position = 0
        while (header := self._header(position)) is not None and header[0] == b"RIFF":
            size = header[1]
            # Streaming recorders leave the size at 0 or at its maximum; the padding of an odd size is often missing.
            declared = position + 8 + size - size % 2 if size not in (0, 0xFFFFFFFF) else actual
            self.structure.missing = max(0, declared - actual)
            self._walk(position + 12, min(declared, actual))
            position = declared + declared % 2
        # The largest counts: the index covers only the first of several RIFF lists.
        self.structure.packets = self._found | self._indexed
        if not self._indexed and (self.structure.missing or self._broken):
            self.structure.packets |= Counter(dict(enumerate(self._lengths))) - self._empty

    def _header(self, position: int) -> tuple[bytes, int] | None:
        self._file.seek(position)
        header = self._file.read(8)
        return (header[:4], int.from_bytes(header[4:], "little")) if len(header) == 8 else None

    def _walk(self, position: int, end: int, depth: int = 0) -> None:
        while position < end and (header := self._header(position)) is not None:
            kind, size = header
            after = position + 8 + size
            if kind == b"LIST":
                name = self._file.read(4)
                if depth == _MOST_DEPTH:
                    self._broken = True
                    return
                if name in (b"hdrl", b"strl", b"movi", b"rec "):
                    self._walk(position + 12, min(after, end) if size else end, depth + 1)
                    if not size:
                        return
            elif kind == b"strh":
                stream = self._file.read(36)
                self._lengths.append(int.from_bytes(stream[32:36], "little") if stream.startswith(b"vids") else 0)
            elif kind == b"idx1":
                self._index(self._file.read(max(0, min(size, end - position - 8))))
            elif _is_data(kind) and after <= self._actual:
                (self._found if size else self._empty)[int(kind[:2])] += 1
            elif not kind.isalnum():
                self._broken = True
                return
            position = after + size % 2

    def _index(self, entries: bytes) -> None:
        for kind, _, _, size in struct.iter_unpack("<4sIII", entries[: len(entries) // 16 * 16]):
            if _is_data(kind) and size:
                self._indexed[int(kind[:2])] += 1


def _is_data(kind: bytes) -> bool:
    """A chunk of a stream, whose number is the first half of the name; "pc" are changes of palettes."""
    return kind[:2].isdigit() and kind[2:] != b"pc"


# Elements of Matroska: their ids with the length marker.
_HEADER, _SEGMENT, _CLUSTER, _TRACKS, _TRACK = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE
_TRACK_NUMBER, _TRACK_TYPE, _SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xD7, 0x83, 0xA3, 0xA0, 0xA1
# Void, CRC-32, seek head, info, cues, attachments, chapters, tags
_IN_SEGMENT = {0xEC, 0xBF, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _TRACKS, _CLUSTER}
# Void, CRC-32, timestamp, silent tracks, position, size of the previous cluster, encrypted block
_IN_CLUSTER = {0xEC, 0xBF, 0xE7, 0x5854, 0xA7, 0xAB, 0xAF, _SIMPLE_BLOCK, _BLOCK_GROUP}
_NUMBERS = {0xE7, 0xA7, 0xAB}  # of up to 8 bytes


class _Matroska:
    """Blocks of all clusters. An unknown element between them is damage: FFmpeg skips up to the next cluster there."""

    def __init__(self, file: BinaryIO, actual: int) -> None:
        self.structure = Structure()
        self._file, self._actual = file, actual
        self._video: list[int] = []  # numbers of the video tracks
        self._numbers: set[int] = set()  # of all tracks
        self._blocks: Counter[int] = Counter()
        position, segments = 0, 0
        while (header := self._element(position)) is not None and header[0] == _HEADER and header[2] is not None:
            segment = self._element(header[2])
            if segment is None or segment[0] != _SEGMENT:
                break
            _, start, declared = segment
            self.structure.missing = max(0, (declared or 0) - actual)
            position = min(declared or actual, actual)
            self._segment(start, position)
            segments += 1
        self.structure.joined = segments > 1
        self.structure.packets = Counter({place: self._blocks[number] for place, number in enumerate(self._video)})

    def _element(self, position: int) -> tuple[int, int, int | None] | None:
        """Id, start and end of the content of the element at `position`; the end is None if it is unknown."""
        self._file.seek(position)
        data = self._file.read(12)
        if not data or data[0] < 0x10:
            return None
        id_length = 9 - data[0].bit_length()
        size, length = _vint(data[id_length:])
        if not length:
            return None
        start = position + id_length + length
        return int.from_bytes(data[:id_length], "big"), start, None if size is None else start + size

    def _children(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        while start < end and (element := self._element(start)) is not None:
            kind, start, stop = element
            start, content = min(end, stop or end), start
            yield kind, content, start

    def _segment(self, position: int, end: int) -> None:
        ended = 0  # where the last cluster ends
        while position < end:
            element = self._element(position)
            if element is None or element[0] not in _IN_SEGMENT:
                self._lost(position, end)
                return
            kind, start, stop = element
            if kind == _CLUSTER:
                ended = position = self._cluster(start, stop, end)
                if self.structure.damage:
                    return
            else:
                if kind == _TRACKS:
                    self._tracks(start, min(stop or end, end))
                position = stop or end
        if position > end and not ended:
            self.structure.damage = f"cut short: it has {self._actual} bytes and should have {position} or more"

    def _lost(self, position: int, end: int) -> None:
        """Note damage at `position` if a cluster follows, or could have been there."""
        self._file.seek(position)
        unread = self._file.read(min(end - position, SEARCHED))
        if _CLUSTER.to_bytes(4, "big") in unread or b"\xe7" in unread[:32]:
            self.structure.damage = f"damaged or cut short at byte {position} of {self._actual}"

    def _tracks(self, start: int, end: int) -> None:
        for kind, first, last in self._children(start, end):
            if kind == _TRACK:
                values = {}
                for key, content, stop in self._children(first, last):
                    if key in (_TRACK_NUMBER, _TRACK_TYPE):
                        self._file.seek(content)
                        values[key] = int.from_bytes(self._file.read(min(8, stop - content)), "big")
                number = values.get(_TRACK_NUMBER, 0)
                self._numbers.add(number)
                if values.get(_TRACK_TYPE) == 1 and number not in self._video:
                    self._video.append(number)

    def _cluster(self, position: int, stop: int | None, end: int) -> int:
        """Count the blocks of a cluster, and return where it ends."""
        while position < (stop or end):
            element = self._element(position)
            if element is not None and stop is None and element[0] in _IN_SEGMENT - _IN_CLUSTER:
                return position
            kind, start, after = element or (0, 0, None)
            if after is None or kind not in _IN_CLUSTER or after > (stop or end) or after > self._actual:
                break
            if kind in _NUMBERS and after - start > 8:
                break
            if kind == _BLOCK_GROUP:
                blocks = [first for key, first, _ in self._children(start, after) if key == _BLOCK]
                if len(blocks) != 1 or not self._block(blocks[0]):
                    break
            elif kind == _SIMPLE_BLOCK and not self._block(start):
                break
            position = after
        else:
            return position
        self._file.seek(position)
        if stop is None and (end - position < 16 or not self._file.read(min(end - position, SEARCHED)).strip(b"\0")):
            return end  # a cluster of unknown size ends where something else follows, and that is nothing
        self.structure.damage = f"damaged or cut short at byte {position} of {self._actual}"
        return position

    def _block(self, start: int) -> bool:
        self._file.seek(start)
        number, _ = _vint(self._file.read(8))
        self._blocks[number or 0] += 1
        return number in self._numbers or not self._numbers


def _vint(data: bytes) -> tuple[int | None, int]:
    """Value and length of a number of EBML; the value is None if all its bits are set, the length 0 if it is none."""
    if not data or data[0] == 0:
        return None, 0
    length = 9 - data[0].bit_length()
    if len(data) < length:
        return None, 0
    value = int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), length
