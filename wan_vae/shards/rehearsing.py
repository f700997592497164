"""What one process has of a picture, in a rehearsal, where there are no others."""

from collections.abc import Iterable

from wan_vae.shards.grid import Grid
from wan_vae.shards.peers import Message, Transfers
from wan_vae.shards.share import Share


class NoLinks:
    """Carries nothing, and holds what it would carry meanwhile.

    Args:
        count: How many there would be.
        index: Of this one.
    """

    def __init__(self, count: int, index: int) -> None:
        self._count = count
        self.index = index

    def __len__(self) -> int:
        return self._count

    def start(self, sent: Iterable[Message], filled: Iterable[Message]) -> Transfers:
        return Transfers([], [tensor for messages in (sent, filled) for _, tensor in messages])


def largest_share(grid: Grid) -> Share:
    """Return a share that takes as much memory as any of a picture's, or more: a largest one, with most neighbors."""
    # The same parts in another order, so that the largest has neighbors on both sides, if any has.
    inner = Grid(_largest_inside(grid.heights), _largest_inside(grid.widths))
    index = inner.part_at(min(1, grid.rows - 1), min(1, grid.columns - 1))
    assert index is not None
    return Share(inner, NoLinks(grid.rows * grid.columns, index))


def _largest_inside(sizes: tuple[int, ...]) -> tuple[int, ...]:
    first, *others = sorted(sizes)
    return (first, *reversed(others))
