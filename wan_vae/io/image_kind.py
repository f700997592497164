"""Recognizing images by the first bytes of a file, since FFmpeg and Pillow read some of them only in part."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from wan_vae.errors import ClipError, reason
from wan_vae.io.file_names import IMAGE_SUFFIXES

_ANY_IMAGE_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".apng"}
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")

_SIGNATURES = (
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 miaf avci avcs jpeg jpgs j2ki".split()
)
_VIDEO = rb"....(?:ftyp|moov|mdat|free|skip|wide|moof|styp)|RIFF....AVI |\x1aE\xdf\xa3"

_MOST_OF_HEAD = 2**18  # bytes of a JPEG file in which its segments are, the preview included
_NEXT_PICTURE = {"PNG": b"IEND\xaeB`\x82\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd9\xff\xd8\xff"}
"""What separates the pictures of a video that is a sequence of image files."""


def image_kind(source: Path | BinaryIO, name: str) -> str | None:
    """Pillow's name of the format of a file, from its content; None for what FFmpeg reads.

    A file object is read from its start, and stays open. A ClipError if the file cannot be read, is empty, or is
    no image though its name says so.
    """
    suffix = Path(name).suffix.lower()
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            file.seek(0)
            head = file.read(256)
            kind = _kind(file, head)
            # Images that follow one another in a file are a video. The previews and gain maps of photos look the same.
            is_photo = kind == "JPEG" and (suffix in _PHOTO_SUFFIXES or _lists_pictures(file))
            stream = None if is_photo else _NEXT_PICTURE.get(kind or "")
            if stream and _contains(file, stream):
                return None
    except OSError as error:
        raise ClipError(f"{name} cannot be read ({reason(error)}); name a file that can be.") from error
    if not head:
        raise ClipError(f"{name} is empty (0 bytes); name a video or an image.")
    # FFmpeg goes by the extension where the content says nothing.
    if kind is None and suffix in _ANY_IMAGE_SUFFIXES and not re.match(_VIDEO, head, re.DOTALL):
        raise ClipError(f"{name} cannot be read as an image (it begins like none); fetch or copy it again.")
    return kind


def _lists_pictures(file: BinaryIO) -> bool:
    """Whether a JPEG file has a list of the pictures that belong to it, of CIPA DC-007, as photos have."""
    file.seek(0)
    return b"\xff\xe2" in (head := file.read(_MOST_OF_HEAD)) and b"MPF\0" in head


def _kind(file: BinaryIO, head: bytes) -> str | None:
    if head[4:8] != b"ftyp":
        return next((kind for pattern, kind in _SIGNATURES if re.match(pattern, head, re.DOTALL)), None)
    end = min(int.from_bytes(head[:4], "big"), len(head))
    if not _AVIF_BRANDS.isdisjoint({head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}):
        return "AVIF"
    if head[8:12] not in _HEIF_BRANDS:
        return None
    # FFmpeg reads sequences, unless they hold a still too, and only the tiles of stills.
    boxes = _boxes(file)
    return None if b"moov" in boxes and b"meta" not in boxes else "HEIF"


def _boxes(file: BinaryIO) -> set[bytes]:
    """Names of the outermost boxes of an ISO file."""
    names: set[bytes] = set()
    position = file.seek(0)
    while len(header := file.read(16)) >= 8:
        size = int.from_bytes(header[:4], "big")
        size = int.from_bytes(header[8:], "big") if size == 1 else size
        names.add(header[4:8])
        if not 8 <= size < 1 << 62:  # 0 means to the end of the file
            break
        position = file.seek(position + size)
    return names


def _contains(file: BinaryIO, pattern: bytes) -> bool:
    file.seek(0)
    tail = b""
    while piece := file.read(1 << 20):
        if pattern in tail + piece:
            return True
        tail = piece[-len(pattern) :]
    return False
