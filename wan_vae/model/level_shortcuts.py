"""Wan2.2's shortcuts around a level: parameter-free, they fold time, height and width into channels, or unfold them.

The positions in a cell of (time, height, width) are numbered within each channel: `c p q r` in einops' notation. Groups
of consecutive positions are averaged, or share one value. A group usually spans whole dimensions of the cell, and then
no data has to be reordered.
"""

import math
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from wan_vae.model.halo import Halo
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.workspace import Workspace

Cell = tuple[int, int, int]


class FoldGroup(NamedTuple):
    """What a group of consecutive positions spans: which dimensions of the cell, and how many channels."""

    cell: tuple[bool, bool, bool]
    channels: int

    def sizes(self, cell: Cell) -> dict[str, int]:
        """Return the positions of a cell that differ, along its axes p, q and r."""
        return {name: 1 if whole else size for name, size, whole in zip("pqr", cell, self.cell, strict=True)}


def fold_group(group: int, cell: Cell) -> FoldGroup | None:
    """Return what `group` consecutive positions span, or None if the group ends inside a dimension of the cell."""
    covered = []
    for length in reversed(cell):
        covered.append(group % length == 0)
        group = group // length if covered[-1] else group
        if not covered[-1] and group > 1:
            return None
    return FoldGroup((covered[2], covered[1], covered[0]), group)


class AverageShortcut(nn.Module):
    """Adds the input of an encoder level to its output (`AvgDown3D` in Wan's vae2_2.py).

    Non-overlapping groups of (channels x time x height x width) are averaged to the output width. A clip of odd length
    is padded with zero frames on its left.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: int, space: int) -> None:
        super().__init__()
        self.cell = (time, space, space)
        self.out_channels = out_channels
        self.group = in_channels * math.prod(self.cell) // out_channels
        self.fold = fold_group(self.group, self.cell)

    def forward(self, x: Tensor, main: Tensor, halo: Halo) -> Tensor:
        """Return `main` (B, C_out, T', H', W'), which may be overwritten, plus the averages of `x`."""
        time = self.cell[0]
        missing = -x.shape[2] % time
        if needs_plain_ops() or self.fold is None:
            return main + self._averages(F.pad(x, (0, 0, 0, 0, missing, 0)))
        for index, frame in enumerate(torch.split(main, 1, dim=2)):
            start, stop = index * time - missing, (index + 1) * time - missing
            self._add_averages(frame, x[:, :, max(0, start) : stop], self.fold, halo.workspace)
        return main

    def _add_averages(self, frame: Tensor, x: Tensor, group: FoldGroup, workspace: Workspace) -> None:
        """Add to `frame` (B, C_out, 1, H', W') the averages of its cell `x` (B, C_in, n, H, W), one position at a time.

        Intermediate values are small and come from the workspace; PyTorch's own mixed-dtype sums would make copies.
        """
        wide = frame.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        sums = workspace.empty(tuple(frame.shape), like=wide).zero_()
        own = group.sizes(self.cell)
        positions = rearrange(sums, "b (c p q r) 1 h w -> p q r b c 1 h w", **own)
        addend = workspace.empty(tuple(positions.shape[3:]), like=wide)
        time, height, width = self.cell
        missing = time - x.shape[2]
        for p, q, r, channel in product(range(missing, time), range(height), range(width), range(group.channels)):
            addend.copy_(x[:, channel :: group.channels, p - missing : p - missing + 1, q::height, r::width])
            position = positions[p % own["p"], q % own["q"], r % own["r"]]
            position += addend
        frame += workspace.empty(tuple(frame.shape), like=frame).copy_(sums.div_(self.group))

    def _averages(self, x: Tensor) -> Tensor:
        time, height, width = self.cell
        if self.fold is None:
            positions = rearrange(x, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=height, r=width)
            return reduce(positions, "b (c group) t h w -> b c t h w", "mean", c=self.out_channels)
        cells = rearrange(
            x,
            "b (c group) (t p) (h q) (w r) -> b c group p q r t h w",
            group=self.fold.channels,
            p=time,
            q=height,
            r=width,
        )
        wide = torch.promote_types(x.dtype, torch.float32)
        for dimension, whole in enumerate((self.fold.channels > 1, *self.fold.cell), start=2):
            if whole:
                # PyTorch's mean over inner dimensions takes many times as long as these sums.
                parts = torch.split(cells, 1, dim=dimension)
                cells = sum(parts[1:], start=parts[0].to(wide))
        return (cells.flatten(1, 5) / self.group).to(x.dtype)


class RepeatShortcut(nn.Module):
    """Adds the input of a decoder level to its output (`DupUp3D` in Wan's vae2_2.py).

    Channels are repeated and unfolded into time, height and width; the clip's first frame keeps one copy of two.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: int, space: int) -> None:
        super().__init__()
        self.cell = (time, space, space)
        self.repeats = out_channels * math.prod(self.cell) // in_channels
        self.fold = fold_group(self.repeats, self.cell)

    def forward(self, x: Tensor, main: Tensor, halo: Halo) -> Tensor:
        """Return `main` (B, C_out, T', H', W'), which may be overwritten, plus the repeated `x`."""
        time = self.cell[0]
        repeats = self.repeats if self.fold is None else self.fold.channels
        sizes = dict(zip("pqr", self.cell, strict=True)) if self.fold is None else self.fold.sizes(self.cell)
        x = x.repeat_interleave(repeats, dim=1) if repeats > 1 else x
        cells = rearrange(x, "b (c p q r) t h w -> b c t p h q w r", **sizes)
        if not halo.at_start:
            return self._added(main, cells, time)
        # The first frame keeps the last of its copies.
        first = self._added(main[:, :, :1], cells[:, :, :1, -1:], 1)
        rest = self._added(main[:, :, 1:], cells[:, :, 1:], time)
        return torch.cat([first, rest], dim=2) if needs_plain_ops() else main

    def _added(self, main: Tensor, cells: Tensor, time: int) -> Tensor:
        _, height, width = self.cell
        in_cells = rearrange(main, "b c (t p) (h q) (w r) -> b c t p h q w r", p=time, q=height, r=width)
        if needs_plain_ops():
            return rearrange(in_cells + cells, "b c t p h q w r -> b c (t p) (h q) (w r)")
        in_cells += cells
        return main
