"""Sizes that clips are scaled to: what a width, a height or both ask for, and what happens to another shape."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import numpy as np

from wan_vae.arguments import shown
from wan_vae.errors import ClipError, UserError
from wan_vae.io.orientation import Picture

Fit: TypeAlias = Literal["stretch", "crop", "pad"]
Size: TypeAlias = tuple[int | None, int | None]
"""Width and height; of one that is None, the clip's shape decides."""

_LONGEST, _MOST_PIXELS = 1 << 15, 1 << 26  # of a picture before it is cropped
_NOTICED = Fraction(1, 100)  # a difference of shapes that is worth a notice


@dataclass(frozen=True)
class Scaling:
    """How pictures get their size: they are scaled to `scaled`, and then the middle is cut out or black is added.

    Sizes are (width, height).
    """

    scaled: tuple[int, int]
    size: tuple[int, int]
    pixel_aspect: Fraction  # width of a resulting pixel over its height

    def place(self, picture: Picture) -> Picture:
        """Return a scaled picture (height, width, 3 or 4) in its final size.

        The middle of what is too large is kept, and what is too small is put into the middle of black, which is
        transparent in pictures with alpha. Of an odd number of rows, one more is cut from, or added to, the bottom than
        the top, and of columns, the right than the left.
        """
        if self.scaled == self.size:
            return picture
        cut: list[slice] = []
        margins: list[tuple[int, int]] = []
        for scaled, side in reversed(list(zip(self.scaled, self.size, strict=True))):
            first, missing = max(0, scaled - side) // 2, max(0, side - scaled)
            cut.append(slice(first, first + side))
            margins.append((missing // 2, missing - missing // 2))
        return np.pad(picture[tuple(cut)], (*margins, (0, 0)))

    def distorts_from(self, pixel_aspect: Fraction) -> bool:
        """Whether pixels, which had a shape before, are clearly of another now, and not square."""
        return abs(self.pixel_aspect - 1) > _NOTICED < abs(self.pixel_aspect / pixel_aspect - 1)


def check_fit(fit: object, size: object) -> None:
    """Raise a UserError unless `fit` is a way to get to a size, or None."""
    if fit is None:
        return
    if fit not in get_args(Fit):
        raise UserError(f"fit is {shown(fit)}; it must be stretch, crop or pad.")
    if size is None:
        raise UserError(f"fit is {fit}, but there is no size to fit to; give one, such as --size 832x480.")


def scaling(width: int, height: int, pixel_aspect: Fraction, size: Size | None, fit: Fit | None) -> Scaling:
    """Return how pictures of a width, a height and a shape of pixels get to a size.

    A side that is not given is the one that keeps the shape in which the clip is displayed, with square pixels, rounded
    to an even number, as video needs; the network takes any, since it gets clips padded.

    Stretching keeps the shape that is displayed, so the pixels' changes. Cropping and padding make pixels square.

    Raises:
        ClipError: The picture is so wide or high that there would be too much to crop.
    """
    if size is None:
        return Scaling((width, height), (width, height), pixel_aspect)
    displayed = pixel_aspect * Fraction(width, height)
    wide = size[0] if size[0] is not None else _even((size[1] or 0) * displayed)
    high = size[1] if size[1] is not None else _even(wide / displayed)
    if fit not in ("crop", "pad"):
        aspect = displayed * Fraction(high, wide)
        return Scaling((wide, high), (wide, high), aspect.limit_denominator(1000) or aspect)
    # The height of the whole picture where the width fits, and the other way round.
    tall, broad = max(1, round(wide / displayed)), max(1, round(high * displayed))
    fits_width = (wide / displayed < high) == (fit == "pad")
    scaled = (wide, tall) if fits_width else (broad, high)
    if fit == "crop":
        scaled = max(scaled[0], wide), max(scaled[1], high)
        if max(scaled) > _LONGEST or scaled[0] * scaled[1] > _MOST_PIXELS:
            raise ClipError(
                f"{width}x{height} is too far from the shape of {wide}x{high} to be cropped to it; give another --size,"
                " or --fit pad (in Python, size and fit)."
            )
    else:
        scaled = min(scaled[0], wide), min(scaled[1], high)
    return Scaling(scaled, (wide, high), Fraction(1))


def _even(side: Fraction) -> int:
    return max(2, 2 * round(side / 2))
