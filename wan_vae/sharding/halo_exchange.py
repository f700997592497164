"""The exchange of pixels between the parts of a picture, one part per rank."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.model.halo import Activation, Padding, write
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.workspace import Workspace
from wan_vae.sharding.grid import Area, Grid, common, within
from wan_vae.sharding.process_group import Message, Transport, channels_last


class HaloExchange:
    """Exchanges the edges of a part with the parts around it, while the part's interior is computed (`Neighbors`).

    All ranks must make the same calls in the same order.
    """

    def __init__(self, grid: Grid, transport: Transport) -> None:
        assert transport.world_size == grid.rows * grid.columns, (transport.world_size, grid)
        self._grid = grid
        self._transport = transport
        self._workspace = Workspace()

    def margin(self, reach: Padding) -> Padding:
        # Along an axis that is not cut, zeros are left to the convolution, which needs no copy.
        rows = reach if self._grid.rows > 1 else Padding()
        columns = reach if self._grid.columns > 1 else Padding()
        margin = Padding(top=rows.top, bottom=rows.bottom, left=columns.left, right=columns.right)
        if any(margin) and needs_plain_ops():
            raise UserError(
                "A clip in shards is computed without gradients, autocast and torch.compile; leave them and call again."
            )
        return margin

    def pad(self, out: Tensor, x: Tensor, margin: Padding, activation: Activation | None) -> None:
        if not any(margin):
            write(out, x, activation)
            return
        height, width = x.shape[3:]
        middle = out[..., margin.top : margin.top + height, margin.left : margin.left + width]
        edges, interior = _divided(height, width, margin)
        for edge in edges:
            _write_part(middle, x, edge, activation)
        sent, received = [], []
        for side in self._sides(height, width, margin):
            place = out[(..., *side.outside)]
            if side.rank is None:
                place.zero_()
            else:
                sent.append((side.rank, middle[(..., *side.inside)]))
                received.append((side.rank, place))
        exchange = _Exchange(self._transport, self._workspace, sent, received)
        _write_part(middle, x, interior, activation)
        exchange.finish()

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Padding]:
        own = self._transport.rank
        row, _ = self._grid.place(own)
        scale = x.shape[3] // self._grid.heights[row]
        reach = Padding(top=margin, bottom=margin, left=margin, right=margin)
        mine, wanted = self._grid.area(own, scale), self._grid.area(own, scale, reach)
        size = [side.stop - side.start for side in wanted]
        out = self._workspace.empty_persistent((*x.shape[:3], *size), like=x)
        out[(..., *within(mine, wanted))] = x
        sent, received = [], []
        for rank in range(self._transport.world_size):
            if rank == own:
                continue
            theirs, they_want = self._grid.area(rank, scale), self._grid.area(rank, scale, reach)
            if (area := common(mine, they_want)) is not None:
                sent.append((rank, x[(..., *within(area, mine))]))
            if (area := common(theirs, wanted)) is not None:
                received.append((rank, out[(..., *within(area, wanted))]))
        _Exchange(self._transport, self._workspace, sent, received).finish()
        rows, columns = ((one.start - two.start, two.stop - one.stop) for one, two in zip(mine, wanted, strict=True))
        return out, Padding(top=rows[0], bottom=rows[1], left=columns[0], right=columns[1])

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        own, pixels = self._transport.rank, self._grid.latent_pixels
        assert x.shape[2] == pixels[own], (x.shape, pixels)
        x = x.contiguous()
        parts = [
            x if part == own else x.new_empty(*x.shape[:2], count, x.shape[3]) for part, count in enumerate(pixels)
        ]
        others = [part for part in range(self._transport.world_size) if part != own]
        self._transport.start([(part, x) for part in others], [(part, parts[part]) for part in others]).wait()
        return torch.cat(parts, dim=2)

    def max_over_ranks(self, values: int) -> int:
        pixels = self._grid.latent_pixels
        return values // pixels[self._transport.rank] * max(pixels)

    def _sides(self, height: int, width: int, margin: Padding) -> Iterator["_Side"]:
        row, column = self._grid.place(self._transport.rank)
        for down, right in product((-1, 0, 1), repeat=2):
            if down or right:
                yield _Side(
                    self._grid.part_at(row + down, column + right),
                    (
                        _outside(down, height, margin.top, margin.bottom),
                        _outside(right, width, margin.left, margin.right),
                    ),
                    (
                        _inside(down, height, margin.top, margin.bottom),
                        _inside(right, width, margin.left, margin.right),
                    ),
                )


class _Exchange:
    """Pixels in flight between parts.

    Args:
        transport: Connects the ranks.
        workspace: Allocates the buffers.
        sent: Views (B, C, T, H, W) to send to each rank.
        received: Where to write what each rank sends.
    """

    def __init__(
        self, transport: Transport, workspace: Workspace, sent: list[Message], received: list[Message]
    ) -> None:
        self._places = [place for _, place in received]
        self._arriving = [workspace.empty(tuple(place.shape), like=place) for place in self._places]
        leaving = []
        for rank, pixels in sent:
            copy = workspace.empty(tuple(pixels.shape), like=pixels)
            copy.copy_(pixels)
            leaving.append((rank, channels_last(copy)))
        arriving = [(rank, channels_last(pixels)) for (rank, _), pixels in zip(received, self._arriving, strict=True)]
        self._transfers = transport.start(leaving, arriving)

    def finish(self) -> None:
        """Wait for the pixels to arrive and write them to their places."""
        self._transfers.wait()
        for place, pixels in zip(self._places, self._arriving, strict=True):
            place.copy_(pixels)


class _Side(NamedTuple):
    """An edge or a corner of a part."""

    rank: int | None  # holds the pixels beyond it; None at the picture's edge
    outside: Area  # of these pixels, in the padded part
    inside: Area  # of this part's pixels that the other rank needs


def _outside(direction: int, length: int, before: int, after: int) -> slice:
    bounds = [0, before, before + length, before + length + after]
    return slice(bounds[direction + 1], bounds[direction + 2])


def _inside(direction: int, length: int, before: int, after: int) -> slice:
    # The part before this one needs as many pixels of it as this one needs of the part after it.
    return (slice(0, after), slice(0, length), slice(length - before, length))[direction + 1]


def _divided(height: int, width: int, margin: Padding) -> tuple[list[Area], Area]:
    """Divide a part into the edges that its neighbors need, and its interior."""
    above, left = min(margin.bottom, height), min(margin.right, width)
    below, right = max(above, height - margin.top), max(left, width - margin.left)
    rows, columns, everything = slice(above, below), slice(left, right), slice(0, width)
    edges = [
        (slice(0, above), everything),
        (slice(below, height), everything),
        (rows, slice(0, left)),
        (rows, slice(right, width)),
    ]
    return edges, (rows, columns)


def _write_part(out: Tensor, x: Tensor, area: Area, activation: Activation | None) -> None:
    part = x[(..., *area)]
    if part.numel() > 0:
        write(out[(..., *area)], part, activation)
