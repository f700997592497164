"""The part of a convolution's output that one program of a kernel computes, and what all such kernels end with.

What all our kernels need: Triton's decorator with a type, options, and the right GPU.

This and the other modules named `triton_*` need Triton, which only installations of PyTorch for a GPU bring along: they
are imported where a kernel is about to run.

How kernels find the pixels of tensors (B, C, T, H, W) whose channels lie side by side and whose pixels lie anywhere.

Offsets of pixels are 64 bits wide: a clip of 81 frames in 720p with 96 channels has more than 2^31 values.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Stated, for Triton is about to change what it does where nothing is stated, and warns of that.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def jit(*, any_size: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Mark a function as a kernel, or as a part of one.

    Args:
        any_size: Integer parameters whose values may come and go without the kernel being compiled again.
    """
    return lambda function: triton.jit(do_not_specialize=list(any_size))(function)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Have the kernels that are launched inside run where `x` is, rather than on the first GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


Four = tuple[int, int, int, int]


class Walk(NamedTuple):
    """All pixels of some tensors of one shape, as four nested loops; the innermost is the longest run there is.

    Attributes:
        sizes: Of the loops, outermost first.
        strides: For each tensor, how far one turn of each loop goes.
    """

    sizes: Four
    strides: list[Four]


def pixel_strides(x: Tensor) -> Four:
    """Return the strides of B, T, H and W, with zero where there is nothing to step to.

    PyTorch leaves the stride of a dimension of size 1 open, and kernels are compiled anew for other kinds of strides.
    """
    batch, _, frame, row, column = (stride if size > 1 else 0 for stride, size in zip(x.stride(), x.shape, strict=True))
    return batch, frame, row, column


def channels_are_side_by_side(x: Tensor) -> bool:
    """Whether the channels of a pixel lie one after the other, as the kernels take for granted."""
    return x.stride(1) == 1 or x.shape[1] == 1


def walk(*tensors: Tensor) -> Walk:
    """Return the fewest loops over the pixels of tensors (B, C, T, H, W), for which one order serves all of them."""
    shape = tensors[0].shape
    assert all(x.shape == shape for x in tensors)
    strides = [pixel_strides(x) for x in tensors]
    loops: list[tuple[int, tuple[int, ...]]] = []
    for dimension, size in enumerate((shape[0], *shape[2:])):
        steps = tuple(own[dimension] for own in strides)
        if size == 1:
            continue
        if loops and all(outer == size * inner for outer, inner in zip(loops[-1][1], steps, strict=True)):
            loops[-1] = (loops[-1][0] * size, steps)
        else:
            loops.append((size, steps))
    loops = [(1, (0,) * len(tensors))] * (4 - len(loops)) + loops
    first, second, third, fourth = (size for size, _ in loops)
    return Walk((first, second, third, fourth), [_four([steps[i] for _, steps in loops]) for i in range(len(tensors))])


def _four(values: list[int]) -> Four:
    first, second, third, fourth = values
    return first, second, third, fourth


@jit()
def outer_offset(
    turn: tl.tensor, size1: tl.tensor, size2: tl.tensor, stride0: tl.tensor, stride1: tl.tensor, stride2: tl.tensor
) -> tl.tensor:
    """Return where a turn of the three outer loops of a `Walk` begins."""
    # Every thread of a program computes this; divisions of 64 bits would cost as much as the rest of a kernel.
    rest = turn // size2
    offset = (rest // size1).to(tl.int64) * stride0 + (rest % size1).to(tl.int64) * stride1
    return offset + (turn % size2).to(tl.int64) * stride2


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
