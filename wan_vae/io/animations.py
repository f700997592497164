"""Number and durations of the pictures of an animation, from the blocks of its file, without decoding.

Decoders skip what they do not understand, so that one flipped bit hides pictures in silence; these functions walk over
all blocks instead, and raise a ValueError that says what is wrong. Durations are in seconds; those of 0, which browsers
display for 1/10 s, are 1/10.
"""

import re
import zlib
from fractions import Fraction
from typing import BinaryIO, Literal

from wan_vae.io.clip import LOGGER

_SHORTEST_GIF_DELAY = 2  # hundredths of a second; browsers and FFmpeg replace shorter ones
_WEBP_BITSTREAMS = (b"VP8 ", b"VP8L", b"ALPH")
_PIECE = 1 << 20  # bytes read at once


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError(f"it is cut short at byte {file.tell()}")
    return data


def gif_durations(file: BinaryIO, name: str) -> list[Fraction]:
    """Durations of the pictures of a GIF; bytes after its end, or a missing end, are logged as a warning."""
    file.seek(6)
    screen = _read(file, 7)
    _skip_color_table(file, screen[4])
    durations: list[Fraction] = []
    positions: set[int] = set()
    delay = 0
    while (introducer := file.read(1)) != b";":
        if introducer == b"":
            LOGGER.warning(f"{name} has no end mark; its {len(durations)} pictures are read.")
            break
        if introducer == b"!":
            label, block = _read(file, 1), _read_sub_blocks(file)
            if label == b"\xf9":
                delay = int.from_bytes(block[1:3], "little")
        elif introducer == b",":
            positions.add(file.tell() - 1)
            _skip_color_table(file, _read(file, 9)[8])
            _read(file, 1)
            if not _read_sub_blocks(file):
                raise ValueError(f"picture {len(durations)} is empty")
            durations.append(Fraction(delay if delay >= _SHORTEST_GIF_DELAY else 10, 100))
            delay = 0
        elif introducer != b"\0":  # some programs add zeros
            raise ValueError(f"it has an unknown block at byte {file.tell() - 1}")
    end = file.tell()
    rest = file.seek(0, 2) - end
    file.seek(end)
    if file.read(_PIECE).strip(b"\0\r\n\t "):
        LOGGER.warning(f"{name} ends before the last {rest} bytes of its file, which are left out.")
    if (lost := _gif_picture_outside(file, positions, screen)) is not None:
        raise ValueError(f"the picture at byte {lost} is in no block")
    return durations


def _skip_color_table(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        _read(file, 3 << (flags & 7) + 1)


def _read_sub_blocks(file: BinaryIO) -> bytes:
    """Skip a sequence of sub-blocks; return the first one."""
    first = b""
    while size := _read(file, 1)[0]:
        data = _read(file, size)
        first = first or data
    return first


def _gif_picture_outside(file: BinaryIO, positions: set[int], screen: bytes) -> int | None:
    """Position of what looks like the start of a picture but is none of `positions`, as after a wrong block size."""
    canvas = [int.from_bytes(screen[at : at + 2], "little") for at in (0, 2)]
    overlap = 10
    start, tail = 0, b""
    file.seek(0)
    while piece := file.read(_PIECE):
        data = tail + piece
        for match in re.finditer(rb"\0(?=,(.{9}))", data, re.DOTALL):
            left, top, width, height = (int.from_bytes(match[1][at : at + 2], "little") for at in (0, 2, 4, 6))
            fits = 0 < width <= canvas[0] - left and 0 < height <= canvas[1] - top
            position = start - len(tail) + match.start() + 1
            if fits and not match[1][8] & 0x18 and position not in positions:
                return position
        start += len(piece)
        tail = data[-overlap:]
    return None


def png_durations(file: BinaryIO) -> tuple[list[Fraction], bool, bytes]:
    """Durations of the pictures of an animated PNG, none of a still; whether a picture precedes them; and the EXIF."""
    length = file.seek(0, 2)
    file.seek(8)
    announced: int | None = None
    durations: list[Fraction] = []
    with_data: set[int] = set()
    exif = b""
    while header := file.read(8):
        begin, size, kind = file.tell(), int.from_bytes(header[:4], "big"), header[4:]
        animated = announced is not None or bool(durations)
        if begin + size + 4 > length:
            if animated:
                raise ValueError(f"it is cut short at byte {length}")
            break
        if animated or kind in (b"acTL", b"fcTL"):
            _check_crc(file, kind, size)
        file.seek(begin)
        if kind == b"IEND":
            break
        if kind == b"acTL":
            announced = int.from_bytes(file.read(4), "big")
        elif kind == b"fcTL":
            control = _read(file, 26)
            numerator, denominator = (int.from_bytes(control[at : at + 2], "big") for at in (20, 22))
            durations.append(Fraction(numerator, denominator or 100) or Fraction(1, 10))
        elif kind in (b"IDAT", b"fdAT"):
            with_data.add(len(durations))
        elif kind == b"eXIf":
            exif = file.read(size)
        file.seek(begin + size + 4)
    still_first = 0 in with_data
    count = len(with_data) - still_first
    if (announced is not None or durations) and not announced == len(durations) == count:
        raise ValueError(f"it announces {announced or 0} pictures and holds {count}")
    return durations, still_first, exif


def _check_crc(file: BinaryIO, kind: bytes, size: int) -> None:
    position, checksum = file.tell(), zlib.crc32(kind)
    for begin in range(0, size, _PIECE):
        checksum = zlib.crc32(_read(file, min(_PIECE, size - begin)), checksum)
    if checksum != int.from_bytes(_read(file, 4), "big"):
        raise ValueError(f"the chunk at byte {position - 8} is damaged")


def webp_durations(file: BinaryIO) -> list[Fraction]:
    """Durations of the pictures of an animated WebP, none of a still."""
    length = file.seek(0, 2)
    file.seek(12)
    durations: list[Fraction] = []
    while len(header := file.read(8)) == 8:
        begin, size, kind = file.tell(), int.from_bytes(header[4:], "little"), header[:4]
        start = file.read(20)
        if kind == b"ANMF":
            if begin + size > length:
                raise ValueError(f"it is cut short at byte {length}")
            durations.append(Fraction(int.from_bytes(start[12:15], "little"), 1000) or Fraction(1, 10))
        elif start[16:] in _WEBP_BITSTREAMS:
            raise ValueError(f"the picture at byte {begin - 8} is in an unknown block")
        file.seek(begin + size + size % 2)
    file.seek(0)
    # A wrong size of a block hides those after it.
    if durations and len(re.findall(rb"(?s)ANMF.{20}(?:VP8 |VP8L|ALPH)", file.read())) > len(durations):
        raise ValueError(f"more than its {len(durations)} pictures are in no block")
    return durations


def avif_picture_count(file: BinaryIO) -> int:
    """Number of samples of the longest track of an AVIF, 0 if it has none."""
    file.seek(0)
    return max((int.from_bytes(count, "big") for count in re.findall(rb"(?s)stsz.{8}(.{4})", file.read())), default=0)


def tiff_page_count(file: BinaryIO) -> int:
    """Number of pages (image file directories) of a TIFF or BigTIFF."""
    file.seek(0)
    head = file.read(8)
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    count_size, entry_size, offset_size = (8, 20, 8) if b"+" in head[2:4] else (2, 12, 4)
    offset = int.from_bytes(head[4:] if offset_size == 4 else _read(file, 8), order)
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise ValueError(f"page {len(seen)} is followed by an earlier one")
        seen.add(offset)
        file.seek(offset)
        file.seek(entry_size * int.from_bytes(_read(file, count_size), order), 1)
        offset = int.from_bytes(_read(file, offset_size), order)
    return len(seen)


def avif_bit_depth(file: BinaryIO) -> int:
    """Bits a channel of an AVIF, from the configuration of its codec."""
    file.seek(0)
    flags = max((found[0] for found in re.findall(rb"(?s)av1C\x81.(.)", file.read(1 << 16))), default=0)
    return 12 if flags & 0x20 else 10 if flags & 0x40 else 8
