"""How a picture is cut in parts, one a device, in rows and columns along the latents' grid."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.model.halo import Padding

Area = tuple[slice, slice]
"""Rows and columns of pixels."""
_NONE = Padding()


@dataclass(frozen=True)
class Grid:
    """Parts in rows and columns, numbered row by row.

    Attributes:
        heights: How many rows of latents each row of parts has.
        widths: How many columns of latents each column of parts has.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows of parts there are."""
        return len(self.heights)

    @property
    def columns(self) -> int:
        """How many columns of parts there are."""
        return len(self.widths)

    @property
    def latent_pixels(self) -> tuple[int, ...]:
        """How many pixels of the latents' grid each part has."""
        return tuple(height * width for height in self.heights for width in self.widths)

    def place(self, part: int) -> tuple[int, int]:
        """Return the row and the column of a part."""
        return divmod(part, self.columns)

    def part_at(self, row: int, column: int) -> int | None:
        """Return the part in this row and column; None if the picture ends before it."""
        return row * self.columns + column if 0 <= row < self.rows and 0 <= column < self.columns else None

    def beyond(self, part: int) -> Padding:
        """Return how many rows and columns of latents lie on each side of a part."""
        (rows, columns), (height, width) = self.area(part, 1), (sum(self.heights), sum(self.widths))
        return Padding(0, rows.start, height - rows.stop, columns.start, width - columns.stop)

    def area(self, part: int, scale: int, reach: Padding = _NONE) -> Area:
        """Return the pixels of a part, and those within `reach` of it in the picture, a latent being `scale` wide."""
        row, column = self.place(part)
        rows = _span(self.heights, row, scale, reach.top, reach.bottom)
        return rows, _span(self.widths, column, scale, reach.left, reach.right)

    def cut(self, x: Tensor, part: int, scale: int) -> Tensor:
        """View a part of the whole picture's `x` (..., H, W), in which a latent is `scale` x `scale` pixels."""
        return x[(..., *self.area(part, scale))]


def common(area: Area, other: Area) -> Area | None:
    """Return the pixels that two areas share, if there are any."""
    rows, columns = (
        slice(max(one.start, two.start), min(one.stop, two.stop)) for one, two in zip(area, other, strict=True)
    )
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def within(area: Area, outer: Area) -> Area:
    """Return an area counted from the start of another that holds it."""
    rows, columns = (slice(one.start - two.start, one.stop - two.start) for one, two in zip(area, outer, strict=True))
    return rows, columns


def best_grid(devices: int, height: int, width: int) -> Grid:
    """Cut a picture of height x width latents for as many devices, with the shortest edges within.

    Raises:
        UserError: A device would be left without a pixel.
    """
    fitting = [shape for shape in _shapes(devices) if shape[0] <= height and shape[1] <= width]
    if not fitting:
        fewer = next(n for n in range(devices, 0, -1) if any(r <= height and c <= width for r, c in _shapes(n)))
        raise UserError(f"{devices} devices cannot share a picture of {height}x{width} latents; {fewer} could.")
    rows, columns = min(fitting, key=lambda shape: ((shape[0] - 1) * width + (shape[1] - 1) * height, shape))
    return even_grid(rows, columns, height, width)


def even_grid(rows: int, columns: int, height: int, width: int) -> Grid:
    """Cut a picture of height x width latents in rows x columns parts that differ by one latent at most.

    Raises:
        UserError: The picture has fewer rows or columns than there are parts.
    """
    if rows > height or columns > width:
        raise UserError(
            f"{rows}x{columns} devices cannot share a picture of {height}x{width} latents;"
            f" {min(rows, height)}x{min(columns, width)} could."
        )
    return Grid(_even(height, rows), _even(width, columns))


def _even(total: int, count: int) -> tuple[int, ...]:
    bounds = [total * index // count for index in range(count + 1)]
    return tuple(stop - start for start, stop in pairwise(bounds))


def _shapes(devices: int) -> Iterator[tuple[int, int]]:
    return ((rows, devices // rows) for rows in range(1, devices + 1) if devices % rows == 0)


def _span(sizes: tuple[int, ...], index: int, scale: int, ahead: int, behind: int) -> slice:
    start = sum(sizes[:index]) * scale
    return slice(max(0, start - ahead), min(sum(sizes) * scale, start + sizes[index] * scale + behind))
