"""The frame store: sources decoded and scaled once, then cut from at random without decoding anything again."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wan_vae.comparison import eight_bits
from wan_vae.errors import UserError
from wan_vae.files import written_beside
from wan_vae.fitting import Frames
from wan_vae.video import open_clip

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v")
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class StoredClip:
    """A clip in the store.

    Attributes:
        name: The source's file name.
        path: Of the stored array (n, height, width, 3), uint8 RGB.
        count: n.
    """

    name: str
    path: Path
    count: int

    def frames(self) -> NDArray[np.uint8]:
        """Return the frames, mapped from disk; the file is open for as long as they are held."""
        mapped: NDArray[np.uint8] = np.load(self.path, mmap_mode="r")
        return mapped


def find_sources(place: Path | None, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files at `place`, a file or a folder, sorted by name.

    Raises:
        UserError: There is nothing there that could be read.
    """
    if place is None:
        return []
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place} is neither a file nor a folder; name where the training data is.")
    found = sorted(path for path in place.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise UserError(f"{place} holds no file ending in {', '.join(suffixes)}.")
    return found


def store_clip(source: Path, folder: Path, *, short_side: int, most_frames: int, enlarge: bool) -> StoredClip:
    """Decode a source into the store, unless it is there already.

    Args:
        source: A clip or an image.
        folder: Of the store.
        short_side: What the frames' short side is scaled to, in pixels.
        most_frames: How many frames are stored at most.
        enlarge: Whether smaller frames are scaled up, too.
    """
    status = source.stat()
    identity = [str(source.resolve()), status.st_size, status.st_mtime_ns, short_side, most_frames, enlarge]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    path = folder / f"{source.stem}-{digest}.npy"
    if not path.exists():
        with open_clip(source) as clip:
            scale = short_side / min(clip.info.width, clip.info.height)
            scale = scale if enlarge else min(scale, 1.0)
            size = round(clip.info.width * scale), round(clip.info.height * scale)
        with open_clip(source, size=size, frames=(0, most_frames)) as clip, written_beside(path) as beside:
            _write(beside, clip.info.frames, size, clip.chunks(16))
    return StoredClip(source.name, path, count=len(np.load(path, mmap_mode="r")))


def _write(path: Path, most_frames: int, size: tuple[int, int], chunks: Iterator[Frames]) -> None:
    # Written rather than mapped: a disk that is full is then an error, not the end of the process.
    with path.open("wb") as file:
        _write_header(file, most_frames, size)
        begin, written = file.tell(), 0
        for chunk in chunks:
            file.write(np.ascontiguousarray(eight_bits(chunk)).data)
            written += len(chunk)
        file.seek(0)
        _write_header(file, written, size)  # an interlaced source may have fewer frames than its file says
        assert file.tell() == begin


def _write_header(file: BinaryIO, frames: int, size: tuple[int, int]) -> None:
    shape = (frames, size[1], size[0], 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
