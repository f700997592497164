"""The compiled convolution for CPUs with AMX, on tensors."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from wan_vae.ops.native_arguments import are_alike, data, five, frames_of, is_channels_last, is_like, threads, wide_bias
from wan_vae.ops.native_library import library
from wan_vae.ops.rehearsal import device_of

_MOST_TAPS = 32
_CHANNELS_AT_ONCE = 32


def amx_conv3d(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    packed: Tensor,
    *,
    zeros: tuple[int, int, int] = (0, 0, 0),
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Tensor:
    """A convolution of bfloat16 with sums in float32, rounded once. Not differentiable.

    Zeros lie wherever a tap meets no pixel; after the last frame lies nothing. The result does not depend on the number
    of threads, nor on what else is in the batch.

    Args:
        pieces: (B, C_in, n, H, W) each, bfloat16, on a CPU, channels last, alike but for n: the frames of `x`, those
            of zeros left out.
        weight: (C_out, C_in, taps, rows, columns), bfloat16, in any layout.
        bias: (C_out,), in any floating-point dtype, or nothing.
        residual: As `out`, is added; may be `out`.
        out: (B, C_out, T, H', W'), bfloat16, channels last, takes the result; shares no memory with `x`.
        packed: Memory for the weight: bfloat16, contiguous, `amx_packed_size(weight)` values or more.
        zeros: How many frames of zeros come first, how many rows of them are above the first row of `x`, and columns
            on the left. H' and W' say how many are below and on the right.
        stride: In time, height and width; the last two are the same.

    Returns:
        `out`.

    Raises:
        MemoryError: There is none left for the intermediate values.
    """
    kernels = library()
    assert kernels is not None, "amx_conv3d needs the compiled kernels"
    before, top, left = zeros
    x, seen = pieces[0], before + sum(piece.shape[2] for piece in pieces)
    frames = (seen - weight.shape[2]) // stride[0] + 1
    assert stride[1] == stride[2], stride
    assert amx_serves(x, weight), (x.shape, x.dtype, weight.shape, weight.dtype)
    assert are_alike(pieces), [(piece.shape, piece.dtype, piece.stride()) for piece in pieces]
    assert out.shape[:3] == (x.shape[0], weight.shape[0], frames), (x.shape, frames, weight.shape, out.shape)
    assert out.dtype == x.dtype, out.dtype
    assert is_channels_last(out), (out.device, out.stride())
    assert residual is None or is_like(residual, out), (residual.shape, residual.dtype, residual.stride(), out.shape)
    assert packed.dtype == x.dtype, packed.dtype
    assert packed.is_contiguous(), packed.stride()
    assert packed.numel() >= amx_packed_size(weight), (packed.shape, weight.shape)
    bias = wide_bias(bias, weight.shape[0])
    if out.numel() == 0:
        return out
    sizes = (x.shape[0], *weight.shape[1::-1], *out.shape[2:], seen, *x.shape[3:], *weight.shape[2:])
    failed = kernels.wan_vae_amx_convolve(
        (ctypes.c_int64 * 16)(*sizes, *stride[:2], top, left), frames_of(pieces, before),
        (ctypes.c_int64 * 2)(*x.stride()[3:]), data(weight), five(weight.stride()), data(bias),
        data(residual), five((out if residual is None else residual).stride()),
        data(out), five(out.stride()), data(packed), threads()
    )  # fmt: skip
    if failed:
        raise MemoryError("There is no memory for the intermediate values of a convolution.")
    return out


def amx_packed_size(weight: Tensor) -> int:
    """How many bfloat16 `amx_conv3d` needs for this weight: its outputs rounded up to a multiple of 16."""
    kernels = library()
    assert kernels is not None, "amx_packed_size needs the compiled kernels"
    size = ctypes.c_int64()
    sizes = (1, *weight.shape[1::-1], *[1] * 6, *weight.shape[2:])
    kernels.wan_vae_amx_packed_size((ctypes.c_int64 * 16)(*sizes, 1, 1, 0, 0), ctypes.byref(size))
    return size.value


def amx_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether `amx_conv3d` can convolve `x`, channels last, with `weight` here: channels must make up even parts."""
    if x.dtype != torch.bfloat16 or weight.dtype != x.dtype or device_of(x).type != "cpu" or not has_amx():
        return False
    channels = x.shape[1]
    parts = -(-channels // _CHANNELS_AT_ONCE)
    return channels % (2 * parts) == 0 and weight.shape[2:].numel() <= _MOST_TAPS


def has_amx() -> bool:
    """Whether the compiled kernels are there, were compiled for AMX, and this process may use it."""
    kernels = library()
    return kernels is not None and _permitted(kernels)


@functools.cache
def _permitted(kernels: ctypes.CDLL) -> bool:
    return bool(kernels.wan_vae_has_amx())
