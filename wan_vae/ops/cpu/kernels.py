"""The compiled convolution for CPUs with AMX, on tensors.

What the compiled kernels are called with.

Compiled CPU kernels, on tensors. Where `library` finds none, none of them can be called.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.ops.cpu.build import build_kernels, library
from wan_vae.ops.memory_estimator import device_of


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is (B, C, T, H, W) on a CPU, the channels of a pixel next to each other in memory."""
    return device_of(x).type == "cpu" and x.dim() == 5 and (x.stride(1) == 1 or x.shape[1] == 1)


def is_like(x: Tensor, other: Tensor) -> bool:
    """Whether a kernel that takes `other` can take `x` beside it."""
    return is_channels_last(x) and x.dtype == other.dtype and x.shape == other.shape


def wide_bias(bias: Tensor | None, channels: int) -> Tensor | None:
    """Return a bias (C,) in float32, if there is one."""
    if bias is None:
        return None
    assert bias.shape == (channels,), (bias.shape, channels)
    return bias.detach().to(torch.float32).contiguous()


def are_alike(pieces: Sequence[Tensor]) -> bool:
    """Whether pieces (B, C, n, H, W) of one tensor differ in n alone, and in where their frames are."""
    x = pieces[0]
    return all(
        is_channels_last(piece)
        and (piece.dtype, piece[:, :, :0].shape) == (x.dtype, x[:, :, :0].shape)
        and all(piece.stride(dim) == x.stride(dim) for dim in (3, 4) if x.shape[dim] > 1)
        for piece in pieces
    )


def frames_of(pieces: Sequence[Tensor], before: int) -> "ctypes.Array[ctypes.c_void_p]":
    """Return where the frames of each clip are, after `before` nulls, which stand for frames of zeros."""
    places: list[int | None] = []
    for clip in range(pieces[0].shape[0]):
        places += [None] * before
        for piece in pieces:
            start, step = piece.data_ptr() + clip * piece.stride(0) * piece.itemsize, piece.stride(2) * piece.itemsize
            places += [start + frame * step for frame in range(piece.shape[2])]
    return (ctypes.c_void_p * len(places))(*places)


def data(x: Tensor | None) -> ctypes.c_void_p | None:
    """Return where the values are, null if there are none."""
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def five(numbers: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """Return sizes or strides of (B, C, T, H, W)."""
    return (ctypes.c_int64 * 5)(*numbers)


def threads() -> ctypes.c_int:
    """Return how many threads PyTorch computes with."""
    return ctypes.c_int(torch.get_num_threads())


__all__ = [
    "build_kernels",
    "library",
    "norm_silu",
    "packed_size",
    "supports_norm_silu",
    "supports_winograd",
    "winograd_conv3d",
]

_DTYPES = (torch.float32, torch.bfloat16)


class _Least(NamedTuple):
    """Below one of these, a convolution is left to oneDNN: `C_in * C_out * taps`, C_in, `B * H * W`."""

    products: int
    channels: int
    pixels: int


# Measured with 3 to 384 channels; doubled, float32's do for bfloat16 as well.
_WORTHWHILE = {torch.float32: _Least(256, 1, 16), torch.bfloat16: _Least(576, 12, 256)}


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    """`silu(x * rsqrt(max(sum(x^2), 1e-24)) * sqrt(C) * gamma)` over the channels, in one pass over memory.

    Args:
        x: (B, C, T, H, W), float32 or bfloat16, on a CPU, the channels next to each other in memory.
        gamma: C values, in any shape and floating-point dtype.
        out: Takes the result; as `x`, and may be `x`. Arithmetic is float32 throughout.

    Returns:
        `out`.
    """
    kernels = library()
    assert kernels is not None, "norm_silu needs the compiled kernels"
    assert supports_norm_silu(x), (x.dtype, x.stride())
    assert is_like(out, x), (x.shape, x.dtype, out.shape, out.dtype, out.stride())
    assert gamma.numel() == x.shape[1], gamma.shape
    scale = (gamma.detach().to(torch.float32) * x.shape[1] ** 0.5).flatten().contiguous()
    function = kernels.wan_vae_norm_silu_float32 if x.dtype == torch.float32 else kernels.wan_vae_norm_silu_bfloat16
    function(data(x), data(scale), data(out), five(x.shape), five(x.stride()), five(out.stride()), threads())
    return out


def supports_norm_silu(x: Tensor) -> bool:
    """Whether `norm_silu` can read, or write, this tensor."""
    return x.dtype in _DTYPES and is_channels_last(x)


def packed_size(weight: Tensor) -> int:
    """How many float32 `winograd_conv3d` needs for this weight: 4 times its values, or a little more."""
    kernels = library()
    assert kernels is not None, "packed_size needs the compiled kernels"
    size = ctypes.c_int64()
    kernels.wan_vae_packed_size((ctypes.c_int64 * 3)(*weight.shape[:3]), ctypes.byref(size))
    return size.value


def winograd_conv3d(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    packed: Tensor,
    *,
    zeros: tuple[int, int, int] = (0, 1, 1),
    doubled: bool = False,
) -> Tensor:
    """A convolution with float32 arithmetic, its rows and columns by Winograd's F(4x4, 3x3).

    Zeros lie wherever a tap meets no pixel; after the last frame lies nothing. Not differentiable. A NaN or infinity in
    `x` makes NaN of every output that depends on it, and of others in the same 4x4 pixels. The result does not depend
    on the number of threads, nor on what else is in the batch.

    Args:
        pieces: (B, C_in, n, H, W) each, float32 or bfloat16, on a CPU, channels last, alike but for n: the frames of
            `x` (B, C_in, T + taps - 1, H, W), those of zeros left out.
        weight: (C_out, C_in, taps, 3, 3), as `x` in dtype, in any layout.
        bias: (C_out,), in any floating-point dtype, or nothing.
        residual: As `out`, is added; may be `out`.
        out: (B, C_out, T, H', W'), as `x` in dtype, channels last, takes the result; shares no memory with `x`.
        packed: Memory for the transformed weight: float32, contiguous, `packed_size(weight)` values or more.
        zeros: How many frames of zeros come first, how many rows of them are above the first row of `x`, and columns
            on the left. H' and W' say how many are below and on the right.
        doubled: Each pixel of `x` stands for 2x2 equal ones, and so do the zeros above and on the left.

    Returns:
        `out`.

    Raises:
        MemoryError: There is none left for the intermediate values.
    """
    kernels = library()
    assert kernels is not None, "winograd_conv3d needs the compiled kernels"
    before, top, left = zeros
    batch, channels, frames, height, width = out.shape
    x, taps = pieces[0], weight.shape[2]
    assert x.dtype in _DTYPES, x.dtype
    assert are_alike(pieces), [(piece.shape, piece.dtype, piece.stride()) for piece in pieces]
    assert weight.shape == (channels, x.shape[1], taps, 3, 3), (weight.shape, x.shape, out.shape)
    assert (weight.device, weight.dtype) == (x.device, x.dtype), (weight.device, weight.dtype)
    assert x.shape[0] == batch, (x.shape, out.shape)
    assert before + sum(piece.shape[2] for piece in pieces) == frames + taps - 1, (before, len(pieces), out.shape)
    assert out.dtype == x.dtype, out.dtype
    assert is_channels_last(out), (out.device, out.stride())
    assert residual is None or is_like(residual, out), (residual.shape, residual.dtype, residual.stride(), out.shape)
    assert packed.dtype == torch.float32, packed.dtype
    assert packed.is_contiguous(), packed.stride()
    assert packed.numel() >= packed_size(weight), (packed.shape, weight.shape)
    bias = wide_bias(bias, channels)
    if out.numel() == 0:
        return out
    function = kernels.wan_vae_winograd_float32 if x.dtype == torch.float32 else kernels.wan_vae_winograd_bfloat16
    failed = function(
        (ctypes.c_int64 * 11)(batch, x.shape[1], channels, frames, height, width, *x.shape[3:], taps, top, left),
        frames_of(pieces, before), (ctypes.c_int64 * 2)(*x.stride()[3:]),
        data(weight), five(weight.stride()), data(bias),
        data(residual), five((out if residual is None else residual).stride()),
        data(out), five(out.stride()), data(packed), ctypes.c_int(doubled), threads()
    )  # fmt: skip
    if failed:
        raise MemoryError("There is no memory for the intermediate values of a convolution.")
    return out


def supports_winograd(x: Tensor, weight: Tensor, *, doubled: bool = False) -> bool:
    """Whether `winograd_conv3d` can compute this convolution, and sooner than oneDNN does.

    It can where `x` is float32 or bfloat16 on a CPU, and the weight (C_out, C_in, taps, 3, 3). For what it costs to
    transform the weight, and pixels with few channels, it wants the sizes in `_WORTHWHILE`; from there on it takes 0.3
    to 0.9 of oneDNN's time in float32, 0.6 to 1.0 in bfloat16 (Zen 4, two cores). Against oneDNN with AMX, float32
    arithmetic is slow.
    """
    if library() is None or x.dtype not in _DTYPES or weight.dtype != x.dtype or device_of(x).type != "cpu":
        return False
    if weight.shape[3:] != (3, 3) or (x.dtype == torch.bfloat16 and processor_has_amx()):
        return False
    least = _WORTHWHILE[torch.float32 if doubled else x.dtype]
    pixels = x.shape[0] * x.shape[3:].numel()
    products = weight.shape[:3].numel()
    return products >= least.products and x.shape[1] >= least.channels and pixels >= least.pixels


@functools.cache
def processor_has_amx() -> bool:
    """Whether the processor multiplies bfloat16 by AMX, whatever has been compiled."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16", False))


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
    assert supports_amx(x, weight), (x.shape, x.dtype, weight.shape, weight.dtype)
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


def supports_amx(x: Tensor, weight: Tensor) -> bool:
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
