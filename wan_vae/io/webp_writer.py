"""Writing WebP: its container here, its pictures with Pillow.

Animations by libwebp join equal pictures. Those by FFmpeg lay transparent pictures over the ones before, and lossless
ones lose the colors of transparent pixels.
"""

import io
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from wan_vae.errors import ClipError
from wan_vae.io.clip import ClipSink
from wan_vae.io.orientation import Picture

_LARGEST = 2**32 - 10  # bytes of a file
_ANIMATED, _TRANSPARENT = 0x02, 0x10  # flags of the file
_REPLACE = 0x02  # flag of a picture: it is not blended with the one before


class WebPSink(ClipSink):
    """Writer of a WebP: a still for one picture, else an animation that repeats for ever."""

    def __init__(self, fps: Fraction, lossless: bool, path: Path) -> None:
        self._file = path.open("wb")
        self._fps = fps
        self._options: dict[str, Any] = {"lossless": True, "exact": True} if lossless else {"quality": 90}
        self._still = b""
        self._count = 0

    def write(self, picture: Picture) -> None:
        """Append a (height, width, 3 or 4) uint8 picture."""
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "WEBP", **self._options)
        height, width, channels = picture.shape
        size = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
        if self._count == 0:
            self._still = content.getvalue()
        else:
            if self._count == 1:
                flags = _ANIMATED | (_TRANSPARENT if channels == 4 else 0)
                header = _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size) + _chunk(b"ANIM", bytes(6))
                self._file.write(b"RIFF\0\0\0\0WEBP" + header + self._frame(0, size, self._still))
            self._file.write(self._frame(self._count, size, content.getvalue()))
        self._count += 1

    def finish(self) -> None:
        """Complete the file."""
        with self._file as file:
            if self._count == 1:
                file.write(self._still)
            length = file.tell()
            if length > _LARGEST:
                raise ClipError(f"a WebP cannot hold {length} bytes, but at most {_LARGEST}; name a .mkv.")
            file.seek(4)
            file.write((length - 8).to_bytes(4, "little"))

    def abort(self) -> None:
        """Close the unfinished file."""
        with suppress(OSError):  # an error is being raised, and the file is discarded
            self._file.close()

    def _frame(self, number: int, size: bytes, still: bytes) -> bytes:
        """The chunk of a picture that replaces the one before, from the file of a still."""
        begin, end = (round(place * 1000 / self._fps) for place in (number, number + 1))
        pixels = still[30:] if still[12:16] == b"VP8X" else still[12:]
        return _chunk(b"ANMF", bytes(6) + size + (end - begin).to_bytes(3, "little") + bytes([_REPLACE]) + pixels)


def _chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a RIFF file; `content` is of even length."""
    return name + len(content).to_bytes(4, "little") + content
