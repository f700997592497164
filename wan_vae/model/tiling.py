"""How a picture is cut in tiles, and which pixels each step of the network needs for one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from wan_vae.model.steps import Step


@dataclass(frozen=True)
class Tiling:
    """How a clip goes through the network in parts.

    Attributes:
        rows: Tiles one below the other.
        columns: Tiles side by side.
        first: How many of the network's steps run on whole frames before those that run tile by tile.
        last: How many steps have run when tiles are put together; those after run on whole frames.
        latents_per_pass: How many latents go together after the first, or the frames of as many.
    """

    rows: int
    columns: int
    first: int
    last: int
    latents_per_pass: int = 1


class Span(NamedTuple):
    """Pixels from `start` to before `stop`, of a row or a column."""

    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """To index with."""
        return slice(self.start, self.stop)

    def moved(self, by: int) -> "Span":
        """Return a span as long, further on."""
        return Span(self.start + by, self.stop + by)


class Window(NamedTuple):
    """A rectangle of pixels."""

    rows: Span
    columns: Span

    def moved(self, down: int, right: int) -> "Window":
        """Return a window as large, further down and to the right."""
        return Window(self.rows.moved(down), self.columns.moved(right))


def parts_of(size: int, count: int, multiple: int) -> list[Span]:
    """Cut `size` pixels in `count` spans as even as multiples of `multiple` allow; fewer if there are not as many."""
    cells = size // multiple
    count = min(count, cells)
    bounds = [cells * index // count * multiple for index in range(count + 1)]
    return [Span(start, stop) for start, stop in pairwise(bounds)]


def largest_of(steps: Sequence[Step], height: int, width: int, rows: Sequence[Span], columns: Sequence[Span]) -> Window:
    """Return the tile whose largest tensor is largest, of those in so many rows and columns; else as `windows_of`."""
    # Few of them differ in their lengths.
    by_height = {_lengths(steps, height, span): span for span in rows}
    by_width = {_lengths(steps, width, span): span for span in columns}

    def largest(lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
        return max(step.values * high * wide for step, high, wide in zip(steps, *lengths, strict=True))

    high, wide = max(product(by_height, by_width), key=largest)
    return Window(by_height[high], by_width[wide])


def size_after(steps: Sequence[Step], size: int) -> int:
    """Return what becomes of a height or width."""
    for step in steps:
        size = size * step.enlarges // step.reduces
    return size


def margin_of(steps: Sequence[Step]) -> int:
    """Return how many pixels around a part of the input have a say in its output, in units that steps do not divide."""
    unit = math.prod(step.reduces for step in steps)
    # Somewhere far from the picture's edges.
    start = unit * 2**20
    ahead = Span(size_after(steps, start), size_after(steps, start + unit))
    around = spans_of(steps, 2 * start, ahead)[0]
    return -(-max(start - around.start, around.stop - start - unit) // unit) * unit


def windows_of(steps: Sequence[Step], height: int, width: int, tile: Window) -> list[Window]:
    """Return what each step must be given, and last the tile itself, in pixels of the picture at each one's place.

    Args:
        steps: What runs tile by tile.
        height: Of the picture before the first step.
        width: Likewise.
        tile: Of the picture after the last step.
    """
    rows, columns = spans_of(steps, height, tile.rows), spans_of(steps, width, tile.columns)
    return [Window(*spans) for spans in zip(rows, columns, strict=True)]


def spans_of(steps: Sequence[Step], size: int, tile: Span) -> list[Span]:
    """Return what each step must be given of a row or a column of `size` pixels, and last the tile itself."""
    sizes = [size_after(steps[:place], size) for place in range(len(steps) + 1)]
    assert 0 <= tile.start < tile.stop <= sizes[-1], (tile, sizes)
    spans = [tile]
    for step, length in zip(reversed(steps), reversed(sizes[:-1]), strict=True):
        start, stop = spans[-1]
        # Steps that reduce want whole cells. At the picture's edge the network's own zeros lie.
        start = (start * step.reduces // step.enlarges - step.reach) // step.reduces * step.reduces
        stop = -(-(-(-stop * step.reduces // step.enlarges) + step.reach) // step.reduces) * step.reduces
        spans.append(Span(max(0, start), min(length, stop)))
    return spans[::-1]


def _lengths(steps: Sequence[Step], size: int, tile: Span) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in spans_of(steps, size, tile)[:-1])
