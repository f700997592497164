"""Orientation of pictures: display matrices of videos and EXIF tags of images."""

from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[Any]
"""(height, width, channels), full range: uint8 (0 to 255) or uint16 (0 to 65535)."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight axis-aligned orientations: optional transpose, then optional reversal of each axis."""

    swap: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    @property
    def degrees(self) -> int:
        """Clockwise rotation without mirroring: 0, 90, 180 or 270."""
        if self.swap:
            return 90 if self.reverse_columns else 270
        return 180 if self.reverse_rows else 0

    def apply(self, picture: Picture) -> Picture:
        """Return the upright picture (height, width, channels), a view."""
        if self.swap:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.reverse_rows else 1, :: -1 if self.reverse_columns else 1]


_EXIF = {
    2: Orientation(reverse_columns=True),
    3: Orientation(reverse_rows=True, reverse_columns=True),
    4: Orientation(reverse_rows=True),
    5: Orientation(swap=True),
    6: Orientation(swap=True, reverse_columns=True),
    7: Orientation(swap=True, reverse_rows=True, reverse_columns=True),
    8: Orientation(swap=True, reverse_rows=True),
}

_CLOCKWISE = (Orientation(), _EXIF[6], _EXIF[3], _EXIF[8])


def from_exif(tag: int) -> Orientation:
    """Orientation of an EXIF tag; values outside 1 to 8 mean none, since cameras write 0 for unknown."""
    return _EXIF.get(tag, Orientation())


def from_frame(frame: av.VideoFrame) -> Orientation:
    """Nearest of the eight orientations to the display matrix of a decoded frame.

    The matrix is nine native int32 [a b u; c d v; x y w]: a stored pixel (x, y) is displayed at (a·x + c·y, b·x + d·y).
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV refuses to list the side data if one item is of an unknown kind, such as EXIF; the angle still works.
        return _CLOCKWISE[round(-frame.rotation / 90) % 4]
    if matrix is None:
        return Orientation()
    a, b, _, c, d = (int(number) for number in np.frombuffer(bytes(cast(bytes, matrix)), np.int32, 5))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, reverse_rows=d < 0, reverse_columns=a < 0)
    return Orientation(True, reverse_rows=b < 0, reverse_columns=c < 0)
