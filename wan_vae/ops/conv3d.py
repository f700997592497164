"""Convolution on an NVIDIA GPU: cuDNN's, or ours for shapes where it was measured to be faster.

Measuring takes minutes and happens where somebody asked for it: see `wan_vae.ops.autotune`.

Convolution with bias and a residual, by the fastest way that this machine has.
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.ops import autotune as selection
from wan_vae.ops.cpu import kernels as native
from wan_vae.ops.cpu.kernels import amx_conv3d, amx_packed_size, supports_amx
from wan_vae.ops.dispatch import needs_plain_ops, supports_triton
from wan_vae.ops.memory_estimator import estimator_of
from wan_vae.ops.triton import conv3d as triton_conv3d
from wan_vae.ops.triton.bias_residual import add_bias_and_residual
from wan_vae.ops.workspace import Workspace

Zeros = tuple[int, int, int, int, int]
"""Frames before, rows above and below, columns left and right."""
Stride = tuple[int, int, int]
"""In time, height and width."""

_NO_STRIDE: Stride = (1, 1, 1)
# Which of three taps meet the first and the second of two values, for the first and the second of a pair of pixels.
_SEEN = (((0,), (1, 2)), ((0, 1), (2,)))
_FLOAT32 = torch.empty(0, dtype=torch.float32, device="cpu")


def convolve(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    *,
    zero_padding: Zeros = (0, 0, 0, 0, 0),
    stride: Stride = _NO_STRIDE,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve (B, C_in, T, H, W) with `weight` (C_out, C_in, t, h, w), and add `bias` (C_out) and `residual`.

    Args:
        pieces: The input, (B, C_in, n, H, W) each, one after the other in time. More than one of them are taken as they
            are if they `accepts_frame_list`, and otherwise copied.
        workspace: Where the result's memory comes from, if no gradients are recorded.
        zeros: What is to be thought around the input: frames before it, rows above and below, columns left and right.
        stride: In time, height and width; the last two are the same.
        residual: Of the result's shape (B, C_out, T', H', W').
    """
    x = pieces[0]
    before, top, bottom, left, right = zero_padding
    frames = sum(piece.shape[2] for piece in pieces)
    if frames == 1 and before == weight.shape[2] - 1:
        # An exact saving: a frame with nothing before it meets one tap, the others would multiply zeros.
        weight, before = weight[:, :, -1:], 0
    size = (before + frames, top + x.shape[3] + bottom, left + x.shape[4] + right)
    steps = zip(size, weight.shape[2:], stride, strict=True)
    shape = (x.shape[0], weight.shape[0], *((length - taps) // step + 1 for length, taps, step in steps))
    if not accepts_frame_list(x, weight, stride):
        x, padding = _in_one_piece(pieces, (before, *zero_padding[1:]), workspace)
        return _convolve_tensor(x, weight, bias, workspace, padding, stride, residual, shape)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last_3d)
    out = workspace.empty(shape, like=x)
    if supports_amx(x, weight):
        return _by_amx(pieces, weight, bias, residual, out, workspace, zeros=(before, top, left), stride=stride)
    return _by_winograd(pieces, weight, bias, residual, out, workspace, zeros=(before, top, left))


def accepts_frame_list(x: Tensor, weight: Tensor, stride: Stride = _NO_STRIDE) -> bool:
    """Whether frames of tensors like `x` may lie anywhere in memory when `convolve` is given them with `weight`."""
    if needs_plain_ops():
        return False
    return supports_amx(x, weight) or (stride == _NO_STRIDE and native.supports_winograd(x, weight))


def _convolve_tensor(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    padding: tuple[int, int],
    stride: Stride,
    residual: Tensor | None,
    shape: tuple[int, ...],
) -> Tensor:
    if stride != _NO_STRIDE and shape[4] == 1 and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        # With AMX, the oneDNN of torch 2.14 computes these wrongly; in float32 it does not. (A bug like it, with other
        # strides: https://github.com/uxlfoundation/oneDNN/pull/5494.)
        wide = (None if value is None else value.float() for value in (x, weight, bias, residual))
        x, weight, bias, residual = wide  # type: ignore[assignment]
        return _convolve_tensor(x, weight, bias, workspace, padding, stride, residual, shape).bfloat16()
    if needs_plain_ops():
        out = F.conv3d(x, weight, bias, stride, (0, *padding))
        return out if residual is None else out + residual
    x = x.contiguous(memory_format=torch.channels_last_3d)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last_3d)
    estimator = estimator_of(x)
    if estimator is not None:
        estimator.reorder(weight)
        return estimator.convolve(weight, workspace.empty(shape, like=x))
    if x.device.type == "cpu" and _onednn_computes(x.dtype):
        out = workspace.empty(shape, like=x)
        return _by_onednn(x, weight, bias, padding, stride, residual, out)
    if supports_triton(x):
        return convolve_on_gpu(x, weight, bias, padding, stride, residual)
    out = F.conv3d(x, weight, bias, stride, (0, *padding))
    return out if residual is None else out.add_(residual)


def _in_one_piece(pieces: Sequence[Tensor], zeros: Zeros, workspace: Workspace) -> tuple[Tensor, tuple[int, int]]:
    """Return the pieces as one tensor, with those zeros around it that a padding in height and width cannot stand for.

    Such a padding is returned as well.
    """
    before, top, bottom, left, right = zeros
    padding = (0, 0)
    if top == bottom and left == right:
        padding = (top, left)
        top = bottom = left = right = 0
    if len(pieces) == 1 and not any((before, top, bottom, left, right)):
        return pieces[0], padding
    if needs_plain_ops():
        return F.pad(torch.cat(list(pieces), dim=2), (left, right, top, bottom, before, 0)), padding
    batch, channels, _, height, width = pieces[0].shape
    frames = before + sum(piece.shape[2] for piece in pieces)
    joined = workspace.empty((batch, channels, frames, top + height + bottom, left + width + right), like=pieces[0])
    joined[:, :, :before].zero_()
    joined[..., :top, :].zero_()
    joined[..., top + height :, :].zero_()
    joined[..., :left].zero_()
    joined[..., left + width :].zero_()
    start = before
    for piece in pieces:
        stop = start + piece.shape[2]
        joined[:, :, start:stop, top : top + height, left : left + width] = piece
        start = stop
    return joined, padding


def can_fuse_upsample(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_upsampled` can convolve `x` (B, C_in, T, H, W) with `weight` (C_out, C_in, 1, 3, 3)."""
    return not needs_plain_ops() and (supports_amx(x, weight) or native.supports_winograd(x, weight, doubled=True))


def convolve_upsampled(
    x: Tensor, weight: Tensor, bias: Tensor | None, workspace: Workspace, *, zero_padding: Zeros
) -> Tensor:
    """Convolve what `x` (B, C_in, T, H, W) is with every pixel twice in height and width.

    Args:
        x: The input.
        weight: (C_out, C_in, 1, 3, 3).
        bias: (C_out,).
        workspace: Where the result's memory comes from.
        zeros: What is to be thought around `x` before that: of rows and columns, one at most.

    Returns:
        (B, C_out, T, 2H, 2W), where H and W are those of `x` with its zeros, less two.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    batch, _, frames, height, width = x.shape
    _, top, bottom, left, right = zero_padding
    size = (2 * (top + height + bottom - 2), 2 * (left + width + right - 2))
    out = workspace.empty((batch, weight.shape[0], frames, *size), like=x)
    if not supports_amx(x, weight):
        return _by_winograd([x], weight, bias, None, out, workspace, zeros=(0, top, left), doubled=True)
    # The pixels at one of the four places in a pair of pairs are a convolution of 2x2 taps. They look back or ahead.
    for down, right in product(range(2), range(2)):
        taps, part = _taps_at(weight, down, right, workspace), out[..., down::2, right::2]
        seen = x[..., max(0, down - top) :, max(0, right - left) :]
        _by_amx([seen], taps, bias, None, part, workspace, zeros=(0, max(0, top - down), max(0, left - right)))
    return out


def subpixel_weights(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) -> (4 C_out, C_in, 2, 2), for pixels that come in equal pairs.

    In each direction two of three taps meet the same value. The outputs are those at the upper left, upper right, lower
    left and lower right place of a pair of pairs.
    """
    places = []
    for down, right in product(_SEEN, _SEEN):
        rows = [reduce(torch.add, (weight[:, :, tap] for tap in same)) for same in down]
        taps = [reduce(torch.add, (row[:, :, tap] for tap in same)) for row in rows for same in right]
        places.append(torch.stack(taps, dim=2).reshape(*weight.shape[:2], 2, 2))
    return torch.cat(places)


def _taps_at(weight: Tensor, down: int, right: int, workspace: Workspace) -> Tensor:
    """Return what `subpixel_weights` has for one place, (C_out, C_in, 1, 2, 2), in memory of the workspace alone.

    Args:
        weight: (C_out, C_in, 1, 3, 3).
        down: Row of the place in a pair of pairs.
        right: Its column.
        workspace: Where the taps' memory comes from.
    """
    taps = workspace.empty((*weight.shape[:2], 1, 2, 2), like=weight)
    row = workspace.empty((*weight.shape[:2], 1, 1, 3), like=weight)[:, :, 0, 0]
    for height, rows in enumerate(_SEEN[down]):
        _sum_into(row, [weight[:, :, 0, tap] for tap in rows])
        for width, columns in enumerate(_SEEN[right]):
            _sum_into(taps[:, :, 0, height, width], [row[:, :, tap] for tap in columns])
    return taps


def _sum_into(out: Tensor, addends: Sequence[Tensor]) -> None:
    out.copy_(addends[0])
    for addend in addends[1:]:
        out += addend


def _by_amx(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
    *,
    zeros: tuple[int, int, int],
    stride: Stride = _NO_STRIDE,
) -> Tensor:
    packed = workspace.empty((1, amx_packed_size(weight), 1, 1, 1), like=out).flatten()
    estimator = estimator_of(out)
    if estimator is not None:
        return estimator.convolve(weight, out)
    # In a part of a tensor they may lie well without being dense.
    if len(pieces) > 1 or pieces[0].stride(1) != 1:
        pieces = [piece.contiguous(memory_format=torch.channels_last_3d) for piece in pieces]
    return amx_conv3d(pieces, weight, bias, residual, out, packed, zeros=zeros, stride=stride)


def _by_winograd(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
    *,
    zeros: tuple[int, int, int],
    doubled: bool = False,
) -> Tensor:
    # Four times as large as the weight, and so never kept.
    packed = workspace.empty((1, native.packed_size(weight), 1, 1, 1), like=_FLOAT32.to(out.device)).flatten()
    estimator = estimator_of(out)
    if estimator is not None:
        return estimator.convolve(weight, out)
    pieces = [piece.contiguous(memory_format=torch.channels_last_3d) for piece in pieces]
    return native.winograd_conv3d(pieces, weight, bias, residual, out, packed, zeros=zeros, doubled=doubled)


@cache
def _onednn_computes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _by_onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    stride: Stride,
    residual: Tensor | None,
    out: Tensor,
) -> Tensor:
    # PyTorch has no convolution into given memory, but one that adds to what is there.
    if residual is None:
        out.zero_()
    else:
        out.copy_(residual)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        out, x, weight, bias, [0, *padding], list(stride), [1, 1, 1], 1, "add", 1.0, None, [], None
    )


def convolve_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    stride: tuple[int, int, int],
    residual: Tensor | None,
) -> Tensor:
    """As `wan_vae.ops.conv3d.convolve`; `x` (B, C_in, T, H, W) and `residual` are stored channels-last."""

    def by_cudnn() -> Tensor:
        # cuDNN's own bias would be a pass over memory for itself.
        out = F.conv3d(x, weight, None, stride, (0, *padding))
        return add_bias_and_residual(out.contiguous(memory_format=torch.channels_last_3d), bias, residual)

    key = selection.describe("convolve", x.device, x, weight, residual, padding=padding)
    if stride != (1, 1, 1) or not selection.is_open(key):
        return by_cudnn()
    ways: dict[str, Callable[[], Tensor]] = {"cudnn": by_cudnn}
    ways |= triton_conv3d.candidates(x, triton_conv3d.pack_weight(weight), bias, residual, None, padding)
    return ways[selection.fastest(key, ways, x.device)]()
