"""The part of a convolution's output that one program of a kernel computes, and what all such kernels end with."""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from wan_vae.ops.triton_jit import jit

# Channels and more channels of a tile.
_CHANNELS = ((128, 64), (128, 32), (128, 0), (64, 32), (64, 0), (32, 16), (32, 0), (16, 0))
_DEPTHS = (64, 32, 16)
# In float32 there are no tensor cores to use, and no registers for large tiles.
_FLOAT32_CHANNELS = ((64, 0), (32, 0), (16, 0))
_FLOAT32_DEPTHS = (32, 16)
# What a tile costs beside its channels and its depth, in units of these: a guess, to choose what is worth measuring.
_COST_OF_PIXELS = 16
_COST_OF_STEP = 8
_WORTH_MEASURING = 1.1


class Tile(NamedTuple):
    """A part of one output frame, and how a program works on it.

    Attributes:
        height: Rows of pixels, a power of two.
        width: Pixels of a row, a power of two.
        channels: Output channels, a power of two from 16 on.
        more_channels: A second such number or 0. Wan's widths are three times a power of two: 64 and 32 channels side
            by side compute 96, where a single power of two would compute 128.
        depth: Input channels taken in at a time, a power of two from 16 on.
        warps: Groups of 32 threads.
        stages: Steps whose loads are under way at the same time.
    """

    height: int
    width: int
    channels: int
    more_channels: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        channels = f"{self.channels}+{self.more_channels}" if self.more_channels else str(self.channels)
        return f"{self.height}x{self.width}x{channels}x{self.depth}, {self.warps} warps, {self.stages} stages"


@cache
def plausible_tiles(
    in_channels: int, out_channels: int, dtype: torch.dtype, small: tuple[int, int], large: tuple[int, int]
) -> list[Tile]:
    """Return the tiles that may be the fastest for a convolution on a Hopper GPU, none of which spills registers.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        dtype: Of input and weight.
        small: Rows and columns of a tile of 128 pixels.
        large: Of 256 pixels.
    """
    if dtype == torch.float32:
        channels, _ = _cheapest(out_channels, _FLOAT32_CHANNELS)[0]
        depth = _depth(in_channels, _FLOAT32_DEPTHS)
        return [Tile(*small, channels, 0, depth, warps, 2) for warps in (4, 8)]
    depth = _depth(in_channels, _DEPTHS)
    tiles = []
    for channels, more_channels in _cheapest(out_channels, _CHANNELS):
        # With little to compute for each value that is loaded, more of the loads have to be under way.
        stages = 3 if depth == 64 and channels == 128 else 4
        tiles.append(Tile(*small, channels, more_channels, depth, 8, stages))
        if channels + more_channels <= 128:
            tiles.append(Tile(*large, channels, more_channels, depth, 8, stages))
    return tiles


def _cheapest(out_channels: int, choices: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    costs = {choice: triton.cdiv(out_channels, sum(choice)) * (sum(choice) + _COST_OF_PIXELS) for choice in choices}
    first, second = sorted(choices, key=lambda choice: costs[choice])[:2]
    return [first, second] if costs[second] <= _WORTH_MEASURING * costs[first] else [first]


def _depth(in_channels: int, choices: tuple[int, ...]) -> int:
    return min(choices, key=lambda depth: triton.cdiv(in_channels, depth) * (depth + _COST_OF_STEP))


@jit()
def finish(
    total: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    residual_offset: tl.tensor,
    out_offset: tl.tensor,
    inside: tl.tensor,
    first_channel: tl.tensor,
    out_channels: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Add bias and residual to a sum (pixels, block_channels) in float32, round and store it.

    The offsets, and whether a pixel is inside the frame, are given by pixel.
    """
    channel = first_channel + tl.arange(0, block_channels)
    known = channel < out_channels
    there = inside[:, None] & known[None, :]
    if bias is not None:
        total += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        places = residual + residual_offset[:, None] + channel[None, :]
        total += tl.load(places, mask=there, other=0.0).to(tl.float32)
    tl.store(out + out_offset[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=there)
