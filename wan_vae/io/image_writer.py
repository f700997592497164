"""Writing pictures: a single file, or a folder of PNG files."""

from pathlib import Path
from typing import Any

import imageio.v3 as iio

from wan_vae.errors import ClipError
from wan_vae.io.clip import ClipSink
from wan_vae.io.orientation import Picture

STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Written as a single image; .webp is written as an animation."""

JPEG_SUFFIXES = (".jpg", ".jpeg")


def write_picture(path: Path, picture: Picture) -> None:
    """Write a (height, width, 3) uint8 picture; the suffix of `path` selects the format."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix.lower() in JPEG_SUFFIXES else {}
    iio.imwrite(path, picture, plugin="pillow", **options)


class FolderSink(ClipSink):
    """Writer of a folder of PNG files 000000.png, 000001.png and so on."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path
        self._count = 0

    def write(self, picture: Picture) -> None:
        """Write a (height, width, 3) uint8 picture to the next file."""
        write_picture(self._path / f"{self._count:06}.png", picture)
        self._count += 1


class PictureSink(ClipSink):
    """Writer of a single image file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._picture: Picture | None = None

    def write(self, picture: Picture) -> None:
        """Keep a (height, width, 3) uint8 picture; a ClipError for the second one."""
        if self._picture is not None:
            raise ClipError(
                f"an image file ({self._path.suffix}) holds one picture, not several; name a folder, that is, a path "
                "without an ending."
            )
        self._picture = picture.copy()

    def finish(self) -> None:
        """Write the file."""
        if self._picture is not None:
            write_picture(self._path, self._picture)
