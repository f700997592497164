"""Writing pictures: a folder of them, or a single one."""

from pathlib import Path
from typing import Any

import imageio.v3 as iio

from wan_vae.errors import ClipError
from wan_vae.video.orientation import Picture

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_JPEG = {"quality": 95, "subsampling": 0}


def write_picture(path: Path, picture: Picture) -> None:
    """Write a (height, width, 3) uint8 picture in the format its name's ending stands for."""
    options: dict[str, Any] = _JPEG if path.suffix.lower() in (".jpg", ".jpeg") else {}
    iio.imwrite(path, picture, plugin="pillow", **options)


class FolderSink:
    """A folder of PNG files being written, 000000.png and on, as a `Sink`."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path
        self._count = 0

    def write(self, picture: Picture) -> None:
        """Write the next file, of a (height, width, 3) uint8 picture."""
        write_picture(self._path / f"{self._count:06}.png", picture)
        self._count += 1

    def finish(self) -> None:
        """Nothing is left to do: every file is whole once written."""

    def abort(self) -> None:
        """Nothing is open."""


class PictureSink:
    """A single image file being written, as a `Sink`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._picture: Picture | None = None

    def write(self, picture: Picture) -> None:
        """Take the picture, (height, width, 3) uint8.

        Raises:
            ClipError: It is the second.
        """
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

    def abort(self) -> None:
        """Nothing is open."""
