"""What one process has of a picture, in a rehearsal, where there are no others."""

from collections.abc import Callable, Iterable

from torch import Tensor

from wan_vae.memory import Part
from wan_vae.shards.grid import Grid
from wan_vae.shards.peers import Message, Transfers
from wan_vae.shards.share import Share
from wan_vae.shards.way import Way

CutOrJoin = Callable[[Share, Tensor, int], Tensor]
"""Takes a share, a tensor, and its pixels to a side of a latent: a method of `Share`."""


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


def largest_part(grid: Grid, way: Way, cut: CutOrJoin, join: CutOrJoin) -> Part:
    """Return a part that takes as much memory as any of a picture's, or more: a largest one, with most neighbors.

    Args:
        grid: How the picture is cut.
        way: What is done with it.
        cut: How a process comes by its part, such as `Share.cut`.
        join: What becomes of the result, such as `Share.gather`.
    """
    # The same parts in another order, so that the largest has neighbors on both sides, if any has.
    inner = Grid(_largest_inside(grid.heights), _largest_inside(grid.widths))
    index = inner.part_at(min(1, grid.rows - 1), min(1, grid.columns - 1))
    assert index is not None
    share = Share(inner, NoLinks(grid.rows * grid.columns, index))
    return Part(
        share.neighbors,
        inner.beyond(index),
        lambda whole: cut(share, whole, way.scale),
        lambda part: join(share, part, way.becomes),
    )


def _largest_inside(sizes: tuple[int, ...]) -> tuple[int, ...]:
    first, *others = sorted(sizes)
    return (first, *reversed(others))
