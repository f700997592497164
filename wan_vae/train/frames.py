"""The frame store: sources decoded and scaled once, then cut from at random without decoding anything again."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
    """

    name: str
    path: Path

    def frames(self) -> NDArray[np.uint8]:
        """Return the frames, mapped from disk."""
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
    stored = StoredClip(source.name, folder / f"{source.stem}-{digest}.npy")
    if not stored.path.exists():
        with open_clip(source) as clip:
            scale = short_side / min(clip.info.width, clip.info.height)
            scale = scale if enlarge else min(scale, 1.0)
            size = round(clip.info.width * scale), round(clip.info.height * scale)
        with open_clip(source, size=size, frames=(0, most_frames)) as clip, written_beside(stored.path) as beside:
            _write(beside, clip.info.frames, size, clip.chunks(16))
    return stored


def _write(path: Path, most_frames: int, size: tuple[int, int], chunks: Iterator[Frames]) -> None:
    written = 0
    shape = (most_frames, size[1], size[0], 3)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for chunk in chunks:
        array[written : written + len(chunk)] = eight_bits(chunk)
        written += len(chunk)
    array.flush()
    if written < most_frames:  # an interlaced source may have fewer frames than its file says
        kept = np.array(array[:written])
        with path.open("wb") as file:
            np.save(file, kept)
