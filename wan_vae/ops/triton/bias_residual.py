"""Bias and residual after a convolution, in one pass over memory and with one rounding, to where they are needed."""

import triton
import triton.language as tl
from torch import Tensor

from wan_vae.ops.triton.common import (
    OPTIONS,
    alignment_of,
    has_contiguous_channels,
    jit,
    on_device_of,
    pixel_offsets,
    walk,
)

_VALUES_IN_TILE = 4096
_WARPS = 4


def add_bias_and_residual(x: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Write the sum of `x`, a bias and a residual to `out`, and round once.

    Args:
        x: (B, C, T, H, W), float32, float16 or bfloat16, with contiguous channels; C is at most 8192.
        bias: (C,), of any floating dtype, or None.
        residual: Of the shape of `x` and any floating dtype, with contiguous channels, or None.
        out: Like `x`; may be a view into a larger tensor. None stands for `x`.

    Returns:
        `out`.
    """
    channels = x.shape[1]
    out = x if out is None else out
    other = x if residual is None else residual
    assert all(has_contiguous_channels(tensor) for tensor in (x, other, out))
    assert channels <= 8192
    if x.numel() == 0 or (bias is None and residual is None and out is x):
        return out
    (size0, size1, size2, pixels), (x_strides, residual_strides, out_strides) = walk(x, other, out)
    block_channels = triton.next_power_of_2(channels)
    # A tile of a single pixel does not compile: Triton 3.8 takes its offsets for a scalar's.
    block_pixels = max(2, _VALUES_IN_TILE // block_channels)
    tiles = triton.cdiv(pixels, block_pixels)
    with on_device_of(x):
        _add[(size0 * size1 * size2 * tiles,)](
            *(x, bias, residual, out),
            *(tiles, size1, size2, pixels),
            *(*x_strides, *residual_strides, *out_strides),
            channels=channels,
            block_channels=block_channels,
            block_pixels=block_pixels,
            alignment=alignment_of(x_strides, residual_strides, out_strides),
            num_warps=_WARPS,
            **OPTIONS,
        )
    return out


@jit(any_size=["tiles", "pixels"])
def _add(
    x: tl.tensor, bias: tl.tensor, residual: tl.tensor, out: tl.tensor,
    tiles: tl.tensor, size1: tl.tensor, size2: tl.tensor, pixels: tl.tensor,
    x_stride0: tl.tensor, x_stride1: tl.tensor, x_stride2: tl.tensor, x_stride3: tl.tensor,
    residual_stride0: tl.tensor, residual_stride1: tl.tensor, residual_stride2: tl.tensor,
    residual_stride3: tl.tensor,
    out_stride0: tl.tensor, out_stride1: tl.tensor, out_stride2: tl.tensor, out_stride3: tl.tensor,
    channels: tl.constexpr, block_channels: tl.constexpr, block_pixels: tl.constexpr,
    alignment: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    turn = program // tiles
    pixel = (program % tiles) * block_pixels + tl.arange(0, block_pixels)
    channel = tl.arange(0, block_channels)
    there = (pixel < pixels)[:, None] & (channel < channels)[None, :]

    places = x + channel[None, :]
    places += pixel_offsets(turn, pixel, size1, size2, x_stride0, x_stride1, x_stride2, x_stride3, alignment)
    total = tl.load(places, mask=there, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        residual += pixel_offsets(
            turn, pixel, size1, size2, residual_stride0, residual_stride1, residual_stride2, residual_stride3, alignment
        )
        total += tl.load(residual + channel[None, :], mask=there, other=0.0).to(tl.float32)
    out += pixel_offsets(turn, pixel, size1, size2, out_stride0, out_stride1, out_stride2, out_stride3, alignment)
    tl.store(out + channel[None, :], total.to(out.dtype.element_ty), mask=there)
