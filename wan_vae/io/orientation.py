"""Turning pictures upright: video display matrices and EXIF orientations."""

from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[Any]
"""(height, width, channels) of full range: uint8, 0..255, or uint16, 0..65535."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a picture down: rows and columns swapped first, then each axis reversed or not."""

    swap: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    @property
    def degrees(self) -> int:
        """Clockwise turn, mirroring left aside: 0, 90, 180 or 270."""
        if self.swap:
            return 90 if self.reverse_columns else 270
        return 180 if self.reverse_rows else 0

    def apply(self, picture: Picture) -> Picture:
        """The picture upright; a view of the one given, (height, width, channels) before and after."""
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
    """The orientation an EXIF tag asks for; none for a value outside 1..8, as cameras write 0 for unknown."""
    return _EXIF.get(tag, Orientation())


def from_frame(frame: av.VideoFrame) -> Orientation:
    """The orientation of a decoded frame, by the display matrix it carries, if any."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV lists nothing when there is one item of a kind it does not know, such as EXIF; the angle it still gives.
        return _CLOCKWISE[round(-frame.rotation / 90) % 4]
    return Orientation() if matrix is None else from_display_matrix(bytes(cast(bytes, matrix)))


def from_display_matrix(matrix: bytes) -> Orientation:
    """The nearest of the eight orientations to a video's display matrix.

    `matrix` is nine native int32 in row order. A stored pixel (x, y) is shown at (a·x + c·y, b·x + d·y), where a, b
    are the first row's first two numbers and c, d the second row's.
    """
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32, 5))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, reverse_rows=d < 0, reverse_columns=a < 0)
    return Orientation(True, reverse_rows=b < 0, reverse_columns=c < 0)
