"""The compiled CPU kernels as functions of tensors. They can be called where `library` finds the compiled kernels."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wan_vae.ops.cpu.build import library
from wan_vae.ops.memory_estimator import device_of

_DTYPES = (torch.float32, torch.bfloat16)
# Limits of `amx.cpp`: taps of a weight, and channels of a register.
_MAX_AMX_TAPS = 32
_AMX_CHANNELS = 32


class _Least(NamedTuple):
    """Sizes below which oneDNN is faster: `C_in * C_out * taps`, C_in, `B * H * W`."""

    products: int
    channels: int
    pixels: int


# Measured with 3 to 384 channels. With upsampling, the sizes of float32 hold for bfloat16 too.
_WINOGRAD_LEAST = {torch.float32: _Least(256, 1, 16), torch.bfloat16: _Least(576, 12, 256)}


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    """`silu(x * rsqrt(max(sum(x^2), 1e-24)) * sqrt(C) * gamma)` over the channels, in one pass over memory.

    Args:
        x: (B, C, T, H, W), float32 or bfloat16, on a CPU, the channels of a pixel contiguous.
        gamma: C values, in any shape and floating-point dtype.
        out: Receives the result; like `x`, and may be `x`. The arithmetic is float32.

    Returns:
        `out`.
    """
    compiled = _compiled()
    assert supports_norm_silu(x), (x.dtype, x.stride())
    assert _is_like(out, x), (x.shape, x.dtype, out.shape, out.dtype, out.stride())
    assert gamma.numel() == x.shape[1], gamma.shape
    scale = (gamma.detach().to(torch.float32) * x.shape[1] ** 0.5).flatten().contiguous()
    function = compiled.wan_vae_norm_silu_float32 if x.dtype == torch.float32 else compiled.wan_vae_norm_silu_bfloat16
    strides = (_int64s(x.stride()), _int64s(out.stride()))
    function(_data(x), _data(scale), _data(out), _int64s(x.shape), *strides, ctypes.c_int(torch.get_num_threads()))
    return out


def supports_norm_silu(x: Tensor) -> bool:
    """Whether `norm_silu` can read or write this tensor here."""
    return library() is not None and x.dtype in _DTYPES and _is_channels_last(x)


def winograd_conv3d(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    packed: Tensor,
    *,
    zero_padding: tuple[int, int, int] = (0, 1, 1),
    upsample: bool = False,
) -> Tensor:
    """Convolution with float32 arithmetic, whose 3x3 taps are computed by Winograd's F(4x4, 3x3).

    Not differentiable. A NaN or infinity in `x` makes every dependent output NaN, and other outputs of the same 4x4
    pixels. The result depends neither on the number of threads nor on the rest of the batch.

    Args:
        pieces: (B, C_in, n, H, W) each, float32 or bfloat16, on a CPU, channels-last, of equal shape but for n: the
            frames of `x` (B, C_in, T + taps - 1, H, W), without the frames of zeros.
        weight: (C_out, C_in, taps, 3, 3), of the dtype of `x`, with any strides.
        bias: (C_out,), of any floating-point dtype, or None.
        residual: Like `out`, added to the result; may be `out`. Or None.
        out: (B, C_out, T, H', W'), of the dtype of `x`, channels-last, receives the result; not overlapping `x`.
        packed: Memory for the transformed weight: float32, contiguous, at least `winograd_packed_size(weight)` values.
        zero_padding: Frames of zeros before the first frame, rows above the first row of `x`, columns on the left. The
            padding below and on the right follows from H' and W'; there is none after the last frame.
        upsample: Convolve `x` upsampled twice in height and width, by nearest neighbor, with its top and left padding.

    Returns:
        `out`.

    Raises:
        MemoryError: There is no memory for the intermediate values.
    """
    compiled, x, taps = _compiled(), pieces[0], weight.shape[2]
    before, top, left = zero_padding
    batch, channels, frames, height, width = out.shape
    assert x.dtype in _DTYPES, x.dtype
    assert weight.shape == (channels, x.shape[1], taps, 3, 3), (weight.shape, x.shape, out.shape)
    assert (weight.device, weight.dtype) == (x.device, x.dtype), (weight.device, weight.dtype)
    assert x.shape[0] == batch, (x.shape, out.shape)
    assert before + sum(piece.shape[2] for piece in pieces) == frames + taps - 1, (before, len(pieces), out.shape)
    assert packed.dtype == torch.float32, packed.dtype
    assert packed.numel() >= winograd_packed_size(weight), (packed.shape, weight.shape)
    function = compiled.wan_vae_winograd_float32 if x.dtype == torch.float32 else compiled.wan_vae_winograd_bfloat16
    sizes = (batch, x.shape[1], channels, frames, height, width, *x.shape[3:], taps, top, left)
    return _convolve(function, sizes, pieces, before, weight, bias, residual, out, packed, ctypes.c_int(upsample))


def winograd_packed_size(weight: Tensor) -> int:
    """Return how many float32 values `winograd_conv3d` needs for this weight: about 4 times its own."""
    size = ctypes.c_int64()
    _compiled().wan_vae_packed_size(_int64s(weight.shape[:3]), ctypes.byref(size))
    return size.value


def supports_winograd(x: Tensor, weight: Tensor, *, upsample: bool = False) -> bool:
    """Whether `winograd_conv3d` can compute this convolution, and faster than oneDNN does.

    From the sizes in `_WINOGRAD_LEAST` on, it takes 0.3 to 0.9 of oneDNN's time in float32, 0.6 to 1.0 in bfloat16 (Zen
    4, two cores); below, transforming the weight or pixels with few channels costs too much. oneDNN with AMX is faster
    than any float32 arithmetic.
    """
    if library() is None or x.dtype not in _DTYPES or weight.dtype != x.dtype or device_of(x).type != "cpu":
        return False
    if weight.shape[3:] != (3, 3) or (x.dtype == torch.bfloat16 and processor_has_amx()):
        return False
    least = _WINOGRAD_LEAST[torch.float32 if upsample else x.dtype]
    pixels = x.shape[0] * x.shape[3:].numel()
    products = weight.shape[:3].numel()
    return products >= least.products and x.shape[1] >= least.channels and pixels >= least.pixels


def amx_conv3d(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    packed: Tensor,
    *,
    zero_padding: tuple[int, int, int] = (0, 0, 0),
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Tensor:
    """Convolution of bfloat16 with float32 sums, rounded once.

    Not differentiable. The result depends neither on the number of threads nor on the rest of the batch. Arguments,
    result and errors are those of `winograd_conv3d`, except that `weight` is (C_out, C_in, taps, rows, columns),
    `packed` has at least `amx_packed_size(weight)` bfloat16 values, and `stride` is in time, height and width, the
    last two equal.
    """
    compiled, x = _compiled(), pieces[0]
    before, top, left = zero_padding
    in_frames = before + sum(piece.shape[2] for piece in pieces)
    frames = (in_frames - weight.shape[2]) // stride[0] + 1
    assert stride[1] == stride[2], stride
    assert supports_amx(x, weight), (x.shape, x.dtype, weight.shape, weight.dtype)
    assert out.shape[:3] == (x.shape[0], weight.shape[0], frames), (x.shape, frames, weight.shape, out.shape)
    assert packed.dtype == x.dtype, packed.dtype
    assert packed.numel() >= amx_packed_size(weight), (packed.shape, weight.shape)
    sizes = (x.shape[0], *weight.shape[1::-1], *out.shape[2:], in_frames, *x.shape[3:], *weight.shape[2:])
    sizes += (*stride[:2], top, left)
    return _convolve(compiled.wan_vae_amx_convolve, sizes, pieces, before, weight, bias, residual, out, packed)


def amx_packed_size(weight: Tensor) -> int:
    """Return how many bfloat16 values `amx_conv3d` needs: the weight's, with C_out rounded up to a multiple of 16."""
    size = ctypes.c_int64()
    sizes = (1, *weight.shape[1::-1], *[1] * 6, *weight.shape[2:], 1, 1, 0, 0)
    _compiled().wan_vae_amx_packed_size(_int64s(sizes), ctypes.byref(size))
    return size.value


def supports_amx(x: Tensor, weight: Tensor) -> bool:
    """Whether `amx_conv3d` can convolve channels-last `x` with `weight` here: C_in must split into even parts."""
    if x.dtype != torch.bfloat16 or weight.dtype != x.dtype or device_of(x).type != "cpu" or not has_amx():
        return False
    channels = x.shape[1]
    parts = -(-channels // _AMX_CHANNELS)
    return channels % (2 * parts) == 0 and weight.shape[2:].numel() <= _MAX_AMX_TAPS


@functools.cache
def processor_has_amx() -> bool:
    """Whether the processor multiplies bfloat16 by AMX, with or without the compiled kernels."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16", False))


def has_amx() -> bool:
    """Whether the kernels were compiled for AMX, and the system lets this process use it."""
    compiled = library()
    return compiled is not None and _permits_amx(compiled)


@functools.cache
def _permits_amx(compiled: ctypes.CDLL) -> bool:
    return bool(compiled.wan_vae_has_amx())


def _compiled() -> ctypes.CDLL:
    compiled = library()
    assert compiled is not None, "there are no compiled kernels"
    return compiled


def _convolve(
    function: Any,
    sizes: tuple[int, ...],
    pieces: Sequence[Tensor],
    before: int,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    packed: Tensor,
    *options: ctypes.c_int,
) -> Tensor:
    """Check the operands that both convolutions have, and call one of them."""
    x = pieces[0]
    assert _are_alike(pieces), [(piece.shape, piece.dtype, piece.stride()) for piece in pieces]
    assert out.dtype == x.dtype, out.dtype
    assert _is_channels_last(out), (out.device, out.stride())
    assert residual is None or _is_like(residual, out), (residual.shape, residual.dtype, residual.stride(), out.shape)
    assert packed.is_contiguous(), packed.stride()
    assert bias is None or bias.shape == weight.shape[:1], (bias.shape, weight.shape)
    bias = None if bias is None else bias.detach().to(torch.float32).contiguous()
    if out.numel() == 0:
        return out
    failed = function(
        _int64s(sizes), _frames(pieces, before), _int64s(x.stride()[3:]),
        _data(weight), _int64s(weight.stride()), _data(bias),
        _data(residual), _int64s((out if residual is None else residual).stride()),
        _data(out), _int64s(out.stride()), _data(packed), *options,
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    if failed:
        raise MemoryError("There is no memory for the intermediate values of a convolution.")
    return out


def _is_channels_last(x: Tensor) -> bool:
    """Whether `x` is (B, C, T, H, W) on a CPU, with the channels of a pixel contiguous."""
    return device_of(x).type == "cpu" and x.dim() == 5 and (x.stride(1) == 1 or x.shape[1] == 1)


def _is_like(x: Tensor, other: Tensor) -> bool:
    return _is_channels_last(x) and x.dtype == other.dtype and x.shape == other.shape


def _are_alike(pieces: Sequence[Tensor]) -> bool:
    """Whether pieces (B, C, n, H, W) differ only in n and in the addresses of their frames."""
    x = pieces[0]
    return all(
        _is_channels_last(piece)
        and (piece.dtype, piece[:, :, :0].shape) == (x.dtype, x[:, :, :0].shape)
        and all(piece.stride(dim) == x.stride(dim) for dim in (3, 4) if x.shape[dim] > 1)
        for piece in pieces
    )


def _frames(pieces: Sequence[Tensor], before: int) -> "ctypes.Array[ctypes.c_void_p]":
    """Return the addresses of the frames of each clip, after `before` nulls, which stand for frames of zeros."""
    addresses: list[int | None] = []
    for clip in range(pieces[0].shape[0]):
        addresses += [None] * before
        for piece in pieces:
            start, step = piece.data_ptr() + clip * piece.stride(0) * piece.itemsize, piece.stride(2) * piece.itemsize
            addresses += [start + frame * step for frame in range(piece.shape[2])]
    return (ctypes.c_void_p * len(addresses))(*addresses)


def _data(x: Tensor | None) -> ctypes.c_void_p | None:
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def _int64s(numbers: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(numbers))(*numbers)
