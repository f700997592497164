"""RMS norm and SiLU in one pass over memory, written to where the next convolution reads."""

import triton
import triton.language as tl
from torch import Tensor

from wan_vae.ops import MIN_NORM
from wan_vae.ops.triton.common import (
    OPTIONS,
    alignment_of,
    has_contiguous_channels,
    jit,
    on_device_of,
    pixel_offsets,
    walk,
)

# Up to 32 values per thread: enough loads in flight to saturate the memory.
_VALUES_IN_TILE = 4096
_VALUES_IN_STORE = 8  # of 16 bits
_WARPS = 4
_WORTH_HALVING = 64


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write `silu(y / ||y||_2 * sqrt(C) * gamma)` of `y = x + bias` to `out`, the norm over the channels of each pixel.

    Args:
        x: (B, C, T, H, W), float32, float16 or bfloat16, with contiguous channels; C is at most 8192.
        gamma: C values, of any shape and dtype.
        out: Like `x`, rounded once; may be a view into a larger tensor, or `x`.
        bias: (C,), of any floating dtype, or None: that of the convolution before, which then need not add it.

    Returns:
        `out`.
    """
    channels = x.shape[1]
    assert has_contiguous_channels(x)
    assert has_contiguous_channels(out)
    assert channels <= 8192
    if x.numel() == 0:
        return out
    (size0, size1, size2, pixels), (x_strides, out_strides) = walk(x, out)
    block_channels, more_channels = triton.next_power_of_2(channels), 0
    # Wan's widths are three times a power of two: the next power of two would leave a quarter of the threads idle.
    if block_channels >= _WORTH_HALVING and channels <= 3 * block_channels // 4:
        block_channels //= 2
        more_channels = triton.next_power_of_2(channels - block_channels)
    # A tile of a single pixel does not compile: Triton 3.8 takes its offsets for a scalar's.
    block_pixels = max(2, _VALUES_IN_TILE // triton.next_power_of_2(channels))
    if more_channels:  # which alone must be enough for all threads to store 16 bytes
        block_pixels = max(block_pixels, _VALUES_IN_STORE * 32 * _WARPS // more_channels)
    tiles = triton.cdiv(pixels, block_pixels)
    with on_device_of(x):
        _norm_silu[(size0 * size1 * size2 * tiles,)](
            *(x, gamma.reshape(-1), bias, out),
            *(tiles, size1, size2, pixels),
            *(*x_strides, *out_strides),
            *(channels**0.5, MIN_NORM**2),
            channels=channels,
            block_channels=block_channels,
            more_channels=more_channels,
            block_pixels=block_pixels,
            alignment=alignment_of(x_strides, out_strides),
            num_warps=_WARPS,
            **OPTIONS,
        )
    return out


@jit(any_size=["tiles", "pixels"])
def _norm_silu(
    x: tl.tensor, gamma: tl.tensor, bias: tl.tensor, out: tl.tensor,
    tiles: tl.tensor, size1: tl.tensor, size2: tl.tensor, pixels: tl.tensor,
    x_stride0: tl.tensor, x_stride1: tl.tensor, x_stride2: tl.tensor, x_stride3: tl.tensor,
    out_stride0: tl.tensor, out_stride1: tl.tensor, out_stride2: tl.tensor, out_stride3: tl.tensor,
    root: tl.tensor, shortest_squared: tl.tensor,
    channels: tl.constexpr, block_channels: tl.constexpr, more_channels: tl.constexpr, block_pixels: tl.constexpr,
    alignment: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    turn = program // tiles
    pixel = (program % tiles) * block_pixels + tl.arange(0, block_pixels)
    inside = (pixel < pixels)[:, None]
    x_places = x + pixel_offsets(turn, pixel, size1, size2, x_stride0, x_stride1, x_stride2, x_stride3, alignment)
    out_places = out + pixel_offsets(
        turn, pixel, size1, size2, out_stride0, out_stride1, out_stride2, out_stride3, alignment
    )

    channel = tl.arange(0, block_channels)[None, :]
    there = inside & (channel < channels)
    values = _load_biased(x_places, bias, channel, channels, there)
    squared_length = tl.sum(values * values, axis=1)
    if more_channels > 0:
        other_channel = block_channels + tl.arange(0, more_channels)[None, :]
        other_there = inside & (other_channel < channels)
        other_values = _load_biased(x_places, bias, other_channel, channels, other_there)
        squared_length += tl.sum(other_values * other_values, axis=1)
    factor = tl.rsqrt(tl.maximum(squared_length, shortest_squared))[:, None] * root
    _scale_and_store(values * factor, gamma, channel, channels, out_places, there)
    if more_channels > 0:
        _scale_and_store(other_values * factor, gamma, other_channel, channels, out_places, other_there)


@jit()
def _load_biased(
    places: tl.tensor, bias: tl.tensor, channel: tl.tensor, channels: tl.constexpr, there: tl.tensor
) -> tl.tensor:
    values = tl.load(places + channel, mask=there, other=0.0).to(tl.float32)
    if bias is not None:
        values += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    return values


@jit()
def _scale_and_store(
    values: tl.tensor, gamma: tl.tensor, channel: tl.tensor, channels: tl.constexpr, out_places: tl.tensor,
    there: tl.tensor,
) -> None:  # fmt: skip
    scaled = values * tl.load(gamma + channel, mask=channel < channels, other=0.0).to(tl.float32)
    result = scaled / (1.0 + tl.exp(-scaled))
    tl.store(out_places + channel, result.to(out_places.dtype.element_ty), mask=there)
