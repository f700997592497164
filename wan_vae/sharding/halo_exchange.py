"""The neighbors of a part: the processes that hold the parts around it."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.model.halo import Activation, Padding, write
from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.workspace import Workspace
from wan_vae.sharding.grid import Area, Grid, common, within
from wan_vae.sharding.process_group import Message, Transport, channels_last


class HaloExchange:
    """Exchanges the edges of one part of a picture with the parts around it, while this part's interior is computed.

    All processes must ask for the same things in the same order.
    """

    def __init__(self, grid: Grid, peers: Transport) -> None:
        assert len(peers) == grid.rows * grid.columns, (len(peers), grid)
        self._grid = grid
        self._peers = peers
        self._workspace = Workspace()

    def margin(self, reach: Padding) -> Padding:
        # Where the picture is not cut in rows, or columns, its zeros are left to the convolution, which needs no copy.
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
        given, taken = [], []
        for side in self._sides(height, width, margin):
            place = out[(..., *side.outside)]
            if side.peer is None:
                place.zero_()
            else:
                given.append((side.peer, middle[(..., *side.inside)]))
                taken.append((side.peer, place))
        exchange = _Exchange(self._peers, self._workspace, given, taken)
        _write_part(middle, x, interior, activation)
        exchange.finish()

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Padding]:
        own = self._peers.index
        row, _ = self._grid.place(own)
        scale = x.shape[3] // self._grid.heights[row]
        reach = Padding(top=margin, bottom=margin, left=margin, right=margin)
        mine, wanted = self._grid.area(own, scale), self._grid.area(own, scale, reach)
        size = [side.stop - side.start for side in wanted]
        out = self._workspace.empty_persistent((*x.shape[:3], *size), like=x)
        out[(..., *within(mine, wanted))] = x
        given, taken = [], []
        for peer in range(len(self._peers)):
            if peer == own:
                continue
            theirs, they_want = self._grid.area(peer, scale), self._grid.area(peer, scale, reach)
            if (area := common(mine, they_want)) is not None:
                given.append((peer, x[(..., *within(area, mine))]))
            if (area := common(theirs, wanted)) is not None:
                taken.append((peer, out[(..., *within(area, wanted))]))
        _Exchange(self._peers, self._workspace, given, taken).finish()
        rows, columns = ((one.start - two.start, two.stop - one.stop) for one, two in zip(mine, wanted, strict=True))
        return out, Padding(top=rows[0], bottom=rows[1], left=columns[0], right=columns[1])

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        own, pixels = self._peers.index, self._grid.latent_pixels
        assert x.shape[2] == pixels[own], (x.shape, pixels)
        x = x.contiguous()
        parts = [
            x if part == own else x.new_empty(*x.shape[:2], count, x.shape[3]) for part, count in enumerate(pixels)
        ]
        others = [part for part in range(len(self._peers)) if part != own]
        self._peers.start([(part, x) for part in others], [(part, parts[part]) for part in others]).wait()
        return torch.cat(parts, dim=2)

    def max_over_ranks(self, values: int) -> int:
        pixels = self._grid.latent_pixels
        return values // pixels[self._peers.index] * max(pixels)

    def _sides(self, height: int, width: int, margin: Padding) -> Iterator["_Side"]:
        row, column = self._grid.place(self._peers.index)
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
    """Pixels under way between parts.

    Args:
        peers: Who has the parts.
        workspace: Where there is room for what is under way.
        given: What each peer is sent: views (B, C, T, H, W).
        taken: Where what each peer sends is to be written.
    """

    def __init__(self, peers: Transport, workspace: Workspace, given: list[Message], taken: list[Message]) -> None:
        self._places = [place for _, place in taken]
        self._arriving = [workspace.empty(tuple(place.shape), like=place) for place in self._places]
        leaving = []
        for peer, pixels in given:
            copy = workspace.empty(tuple(pixels.shape), like=pixels)
            copy.copy_(pixels)
            leaving.append((peer, channels_last(copy)))
        arriving = [(peer, channels_last(pixels)) for (peer, _), pixels in zip(taken, self._arriving, strict=True)]
        self._transfers = peers.start(leaving, arriving)

    def finish(self) -> None:
        """Wait for what arrives and write it to its places."""
        self._transfers.wait()
        for place, pixels in zip(self._places, self._arriving, strict=True):
            place.copy_(pixels)


class _Side(NamedTuple):
    """What lies beyond an edge or a corner of a part.

    Attributes:
        peer: Who holds it; None if the picture ends before.
        outside: Its place in the surrounded part.
        inside: The place in this part of what the peer wants in turn.
    """

    peer: int | None
    outside: Area
    inside: Area


def _outside(direction: int, length: int, before: int, after: int) -> slice:
    bounds = [0, before, before + length, before + length + after]
    return slice(bounds[direction + 1], bounds[direction + 2])


def _inside(direction: int, length: int, before: int, after: int) -> slice:
    # Whoever lies before this part wants as much of its start as itself wants of what lies after it, and so on.
    return (slice(0, after), slice(0, length), slice(length - before, length))[direction + 1]


def _divided(height: int, width: int, margin: Padding) -> tuple[list[Area], Area]:
    """Divide a part in what its neighbors want and its interior."""
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
