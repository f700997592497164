"""How long a file says it is: the surest sign of a download or a copy that was cut short."""

from pathlib import Path
from typing import BinaryIO

from wan_vae.errors import ClipError

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
