"""How a picture is cut into parts, one per rank, in rows and columns along the latents' grid."""

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
        heights: Rows of latents in each row of parts.
        widths: Columns of latents in each column of parts.
    """

    heights: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows of parts."""
        return len(self.heights)

    @property
    def columns(self) -> int:
        """Columns of parts."""
        return len(self.widths)

    @property
    def latent_pixels(self) -> tuple[int, ...]:
        """Latent pixels of each part."""
        return tuple(height * width for height in self.heights for width in self.widths)

    def place(self, part: int) -> tuple[int, int]:
        """Return the row and the column of a part."""
        return divmod(part, self.columns)

    def part_at(self, row: int, column: int) -> int | None:
        """Return the part in this row and column; None outside the picture."""
        return row * self.columns + column if 0 <= row < self.rows and 0 <= column < self.columns else None

    def beyond(self, part: int) -> Padding:
        """Return the rows and columns of latents on each side of a part."""
        (rows, columns), (height, width) = self.area(part, 1), (sum(self.heights), sum(self.widths))
        return Padding(0, rows.start, height - rows.stop, columns.start, width - columns.stop)

    def area(self, part: int, scale: int, padding: Padding = _NONE) -> Area:
        """Return the pixels of a part and those within `padding` of it, with latents `scale` pixels wide."""
        row, column = self.place(part)
        rows = _span(self.heights, row, scale, padding.top, padding.bottom)
        return rows, _span(self.widths, column, scale, padding.left, padding.right)

    def cut(self, x: Tensor, part: int, scale: int) -> Tensor:
        """Return a view of a part of the picture `x` (..., H, W), in which a latent is `scale` x `scale` pixels."""
        return x[(..., *self.area(part, scale))]


def common(area: Area, other: Area) -> Area | None:
    """Return the intersection of two areas, or None if it is empty."""
    rows, columns = (
        slice(max(one.start, two.start), min(one.stop, two.stop)) for one, two in zip(area, other, strict=True)
    )
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def within(area: Area, outer: Area) -> Area:
    """Return an area relative to the start of another that contains it."""
    rows, columns = (slice(one.start - two.start, one.stop - two.start) for one, two in zip(area, outer, strict=True))
    return rows, columns


def best_grid(devices: int, height: int, width: int) -> Grid:
    """Cut a picture of height x width latents for a number of devices, with the shortest inner edges.

    Raises:
        UserError: A device would get no pixel.
    """
    fitting = [shape for shape in _shapes(devices) if shape[0] <= height and shape[1] <= width]
    if not fitting:
        fewer = next(n for n in range(devices, 0, -1) if any(r <= height and c <= width for r, c in _shapes(n)))
        raise UserError(f"{devices} devices cannot share a picture of {height}x{width} latents; {fewer} could.")
    rows, columns = min(fitting, key=lambda shape: ((shape[0] - 1) * width + (shape[1] - 1) * height, shape))
    return even_grid(rows, columns, height, width)


def even_grid(rows: int, columns: int, height: int, width: int) -> Grid:
    """Cut a picture of height x width latents into rows x columns parts that differ by one latent at most.

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
