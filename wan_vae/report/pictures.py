"""The pictures of a page: chosen and scaled to keep to a number of bytes, and collected on disk until it is written."""

import base64
import io
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_BYTES = 45 * 2**20
"""Of the pictures of a page; in the page they take four thirds of that."""

_LOSSLESS_BYTES = 8 * 2**20  # small enough to send
_LOSSLESS_PER_PIXEL = 3.0  # that of noise
_BYTES_PER_PIXEL = 0.3  # of most clips, at full quality
_QUALITIES = (75, 50, 25)  # tried in turn where the one asked for takes too many bytes
_LARGEST_SIDE = 16383  # of WebP
_LEAST_SIDE = 480  # pixels; frames are left out rather than shown smaller
_CHUNK = 3 * 2**18  # bytes turned into text at a time, a multiple of 3


@dataclass(frozen=True)
class PicturePlan:
    """Which frames of a clip a page shows, and how.

    Attributes:
        width, height: Size of the pictures as they are stored.
        step: Every so many frames has pictures.
        lossless: Pixels are stored exactly.
    """

    width: int
    height: int
    step: int
    lossless: bool

    @classmethod
    def of(cls, frames: int, width: int, height: int, per_frame: int, most_bytes: int = MOST_BYTES) -> "PicturePlan":
        """Return the plan for a clip with so many pictures of each frame; large pictures shrink, then frames go."""
        pixels = frames * per_frame * width * height
        fits = max(width, height) <= _LARGEST_SIDE
        if fits and pixels * _LOSSLESS_PER_PIXEL <= min(most_bytes, _LOSSLESS_BYTES):
            return cls(width, height, 1, True)
        most_pixels = most_bytes / _BYTES_PER_PIXEL
        least_scale = min(1.0, _LEAST_SIDE / max(width, height))
        scale = max(least_scale, min(1.0, math.sqrt(most_pixels / pixels), _LARGEST_SIDE / max(width, height)))
        width, height = (max(1, round(side * scale)) for side in (width, height))
        step = math.ceil(frames * per_frame * width * height / most_pixels)
        return cls(width, height, step, False)


class PictureFile:
    """WebP pictures in a temporary file, each with a name. A context manager that removes the file.

    Args:
        pictures: How many there will be, about: the bytes that some do not need are for those that follow.
        most_bytes: What they take together at most.
        lossless: Store pixels exactly.
    """

    def __init__(self, pictures: int, most_bytes: int, *, lossless: bool) -> None:
        self._left, self._bytes_left = pictures, most_bytes
        self._lossless = lossless
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self._places: list[tuple[str, int, int]] = []  # name, first byte, length

    def __enter__(self) -> "PictureFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def encode(self, picture: NDArray[np.uint8], width: int, height: int, quality: int = 90) -> bytes:
        """Return a picture (h, w, 3) or (h, w) at this size as WebP, which takes no more than its share of bytes."""
        image = Image.fromarray(picture)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        if self._lossless:
            return _webp(image, lossless=True, quality=50, method=1)
        share = self._bytes_left // max(1, self._left)
        for each in (quality, *_QUALITIES):
            content = _webp(image, quality=each, method=1)
            if len(content) <= share:
                return content
        # Noise that is allotted next to nothing; the page draws every picture at the same size.
        while len(content) > share and max(image.size) > 1:
            image = image.reduce(2)
            content = _webp(image, quality=_QUALITIES[-1], method=1)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Keep an encoded picture under a name."""
        self._places.append((name, self._file.seek(0, io.SEEK_END), len(content)))
        self._file.write(content)
        self._left -= 1
        self._bytes_left -= len(content)

    def texts(self) -> Iterator[tuple[str, Iterator[str]]]:
        """Yield the name of each picture and its content, base64 in pieces."""
        for name, first, length in self._places:
            yield name, self._base64(first, length)

    def _base64(self, first: int, length: int) -> Iterator[str]:
        self._file.seek(first)
        while length:
            piece = self._file.read(min(length, _CHUNK))
            length -= len(piece)
            yield base64.b64encode(piece).decode("ascii")


def _webp(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "WEBP", **options)
    return content.getvalue()
