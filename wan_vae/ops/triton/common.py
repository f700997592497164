"""What all Triton kernels share: the decorator, loops over pixels, tile sizes, and the end of a convolution.

The kernels take tensors (B, C, T, H, W) whose channels are contiguous and whose pixels have any strides. Offsets of
pixels are 64 bits wide: a clip of 81 frames in 720p with 96 channels has more than 2^31 values.

Only PyTorch for GPUs comes with Triton, so this package is imported where a kernel is about to run.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Explicit, because Triton is about to change the default and warns where it is used.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}

# Channels and more channels of a tile, on tensor cores and in float32, which has none and no registers for large tiles.
_CHANNELS = ((128, 64), (128, 32), (128, 0), (64, 32), (64, 0), (32, 16), (32, 0), (16, 0))
_FLOAT32_CHANNELS = ((64, 0), (32, 0), (16, 0))
_DEPTHS = (64, 32, 16)
_FLOAT32_DEPTHS = (32, 16)
# Estimated cost of a tile's pixels in channels, and of a step in channels of depth. It selects tiles worth measuring.
_COST_OF_PIXELS = 16
_COST_OF_STEP = 8
_MAX_COST_RATIO = 1.1

Four = tuple[int, int, int, int]


def jit(*, any_size: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as a kernel or as a part of one; `triton.jit` with types.

    Args:
        any_size: Integer parameters whose values do not cause another compilation.
    """
    return lambda function: triton.jit(do_not_specialize=list(any_size))(function)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Launch kernels on the GPU of `x` inside this context, rather than on the first GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class Walk(NamedTuple):
    """All pixels of tensors of one shape, as four nested loops whose innermost one is as long as possible.

    Attributes:
        sizes: Iterations of each loop, outermost first.
        strides: For each tensor, the step of each loop.
    """

    sizes: Four
    strides: list[Four]


def pixel_strides(x: Tensor) -> Four:
    """Return the strides of B, T, H and W, with zero for dimensions of size 1.

    Their strides are arbitrary in PyTorch, and some values would compile a kernel again.
    """
    batch, _, frame, row, column = (stride if size > 1 else 0 for stride, size in zip(x.stride(), x.shape, strict=True))
    return batch, frame, row, column


def has_contiguous_channels(x: Tensor) -> bool:
    """Whether the channels of a pixel are contiguous, as all kernels require."""
    return x.stride(1) == 1 or x.shape[1] == 1


def walk(*tensors: Tensor) -> Walk:
    """Return the loops over the pixels of tensors (B, C, T, H, W), merged where all tensors are contiguous."""
    shape = tensors[0].shape
    assert all(x.shape == shape for x in tensors)
    strides = [pixel_strides(x) for x in tensors]
    # Size and, for each tensor, stride.
    loops: list[tuple[int, tuple[int, ...]]] = []
    for dimension, size in enumerate((shape[0], *shape[2:])):
        steps = tuple(each[dimension] for each in strides)
        if size == 1:
            continue
        if loops and all(outer == size * inner for outer, inner in zip(loops[-1][1], steps, strict=True)):
            loops[-1] = (loops[-1][0] * size, steps)
        else:
            loops.append((size, steps))
    loops = [(1, (0,) * len(tensors))] * (4 - len(loops)) + loops
    sizes, steps_by_loop = zip(*loops, strict=True)
    return Walk(sizes, list(zip(*steps_by_loop, strict=True)))


def alignment_of(*strides: Four) -> int:
    """Return the largest power of two, at most 16, that divides all strides.

    Triton itself only finds out whether a number is a multiple of 16: with pixels of 24 channels it would load and
    store single values.
    """
    return math.gcd(16, *chain.from_iterable(strides))


@jit()
def pixel_offsets(
    turn: tl.tensor, pixel: tl.tensor, size1: tl.tensor, size2: tl.tensor, stride0: tl.tensor, stride1: tl.tensor,
    stride2: tl.tensor, stride3: tl.tensor, alignment: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the offsets, (n, 1), of pixels (n,) of the innermost loop in an iteration of the outer loops of a `Walk`.

    All strides are multiples of `alignment`.
    """
    # Every thread computes this; 64-bit divisions would cost as much as the rest of a kernel.
    rest = turn // size2
    offset = (rest // size1).to(tl.int64) * stride0 + (rest % size1).to(tl.int64) * stride1
    offset += (turn % size2).to(tl.int64) * stride2
    return tl.multiple_of(offset + pixel.to(tl.int64)[:, None] * stride3, (alignment, alignment))


class Tile(NamedTuple):
    """The part of an output frame that one program of a convolution kernel computes, and how.

    Attributes:
        height: Rows of pixels, a power of two.
        width: Pixels of a row, a power of two.
        channels: Output channels, a power of two from 16.
        more_channels: A second power of two from 16, or 0. Wan's widths are three times a power of two: 64 and 32
            channels compute 96, where a single power of two would compute 128.
        depth: Input channels per step, a power of two from 16.
        warps: Groups of 32 threads.
        stages: Steps whose loads are in flight at a time.
    """

    height: int
    width: int
    channels: int
    more_channels: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Parameters of a kernel's launch."""
        return {
            "block_channels": self.channels,
            "more_channels": self.more_channels,
            "block_depth": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
            **OPTIONS,
        }

    def __str__(self) -> str:
        channels = f"{self.channels}+{self.more_channels}" if self.more_channels else str(self.channels)
        return f"{self.height}x{self.width}x{channels}x{self.depth}, {self.warps} warps, {self.stages} stages"


@cache
def plausible_tiles(
    in_channels: int, out_channels: int, dtype: torch.dtype, small: tuple[int, int], large: tuple[int, int]
) -> list[Tile]:
    """Return the tiles that may be the fastest for a convolution on a Hopper GPU; none spills registers.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        dtype: Of input and weight.
        small: Rows and columns of a tile of 128 pixels.
        large: Rows and columns of a tile of 256 pixels.
    """
    if dtype == torch.float32:
        channels, _ = _cheapest(out_channels, _FLOAT32_CHANNELS)[0]
        depth = _depth(in_channels, _FLOAT32_DEPTHS)
        return [Tile(*small, channels, 0, depth, warps, 2) for warps in (4, 8)]
    depth = _depth(in_channels, _DEPTHS)
    tiles = []
    for channels, more_channels in _cheapest(out_channels, _CHANNELS):
        # Tiles with little arithmetic per loaded value need more loads in flight.
        stages = 3 if depth == 64 and channels == 128 else 4
        tiles.append(Tile(*small, channels, more_channels, depth, 8, stages))
        # 256 pixels of 128 channels, with a residual, spill two registers.
        if channels + more_channels < 128:
            tiles.append(Tile(*large, channels, more_channels, depth, 8, stages))
    return tiles


def _cheapest(out_channels: int, choices: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    costs = {choice: triton.cdiv(out_channels, sum(choice)) * (sum(choice) + _COST_OF_PIXELS) for choice in choices}
    first, second = sorted(choices, key=lambda choice: costs[choice])[:2]
    return [first, second] if costs[second] <= _MAX_COST_RATIO * costs[first] else [first]


def _depth(in_channels: int, choices: tuple[int, ...]) -> int:
    return min(choices, key=lambda depth: triton.cdiv(in_channels, depth) * (depth + _COST_OF_STEP))


@jit()
def finish(
    total: tl.tensor, other_total: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor,
    residual_offset: tl.tensor, out_offset: tl.tensor, inside: tl.tensor, first_channel: tl.tensor,
    out_channels: tl.constexpr, block_channels: tl.constexpr, more_channels: tl.constexpr,
) -> None:  # fmt: skip
    """Add bias and residual to the float32 sums of a tile, round and store them.

    `total` is (pixels, block_channels), `other_total` (pixels, more_channels), which is ignored if that is zero.
    `residual_offset`, `out_offset` and `inside`, whether a pixel is inside the frame, are (pixels,).
    """
    channel = first_channel + tl.arange(0, block_channels)
    _finish(total, bias, residual, out, residual_offset, out_offset, inside, channel, out_channels)
    if more_channels > 0:
        channel = first_channel + block_channels + tl.arange(0, more_channels)
        _finish(other_total, bias, residual, out, residual_offset, out_offset, inside, channel, out_channels)


@jit()
def _finish(
    total: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor, residual_offset: tl.tensor,
    out_offset: tl.tensor, inside: tl.tensor, channel: tl.tensor, out_channels: tl.constexpr,
) -> None:  # fmt: skip
    known = channel < out_channels
    mask = inside[:, None] & known[None, :]
    if bias is not None:
        total += tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        pointers = residual + residual_offset[:, None] + channel[None, :]
        total += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + out_offset[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=mask)


def weight_sizes(weight: Tensor, spatial_padding: tuple[int, int]) -> dict[str, int]:
    """Return the compile-time parameters of a convolution kernel: the sizes of a weight, and the zero padding."""
    names = ("out_channels", "in_channels", "kernel_frames", "kernel_height", "kernel_width")
    rows, columns = spatial_padding
    return {**dict(zip(names, weight.shape, strict=True)), "rows_of_zeros": rows, "columns_of_zeros": columns}
