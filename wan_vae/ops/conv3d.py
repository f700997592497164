"""3-D convolution with bias and residual, by the fastest implementation for the tensor and its device.

On a CPU: the compiled kernels for AMX or by Winograd's algorithm, otherwise oneDNN. On an NVIDIA GPU: cuDNN, or the
Triton kernels for shapes where `wan_vae.ops.autotune` measured them to be faster. Everywhere else: PyTorch.
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.errors import UserError
from wan_vae.ops import autotune, needs_plain_ops
from wan_vae.ops.cpu import kernels
from wan_vae.ops.memory_estimator import device_of, estimator_of
from wan_vae.ops.precision import convolution, tf32_allowed
from wan_vae.ops.triton import supports_triton
from wan_vae.ops.workspace import Workspace

ZeroPadding = tuple[int, int, int, int, int]
"""Frames before, rows above and below, columns left and right."""
Stride = tuple[int, int, int]
"""In time, height and width."""

_NO_STRIDE: Stride = (1, 1, 1)
# For the first and the second of two equal pixels, in one direction: which of three taps fall on one value, and which
# on the next.
_MERGED_TAPS = (((0,), (1, 2)), ((0, 1), (2,)))
_NOT_PLANNED = 2**50  # bytes
_CUDNN_ALLOWANCE = 2**26  # bytes, for sums that several blocks of threads share
_MOST_ERROR = 1e-3  # of the largest value, in float32; devices may round the operands
_FLOAT32 = torch.empty(0, dtype=torch.float32, device="cpu")


def convolve(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    *,
    zero_padding: ZeroPadding = (0, 0, 0, 0, 0),
    stride: Stride = _NO_STRIDE,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve (B, C_in, T, H, W) with `weight` (C_out, C_in, t, h, w), and add `bias` (C_out) and `residual`.

    Args:
        pieces: The input, (B, C_in, n, H, W) each, consecutive in time. They are read in place if `accepts_frame_list`,
            and otherwise joined.
        weight: See above.
        bias: See above.
        workspace: Allocates the result while no gradients are recorded.
        zero_padding: Frames of zeros before the input, rows above and below, columns left and right.
        stride: In time, height and width; the last two are equal.
        residual: Of the result's shape (B, C_out, T', H', W').
    """
    x = pieces[0]
    before, top, bottom, left, right = zero_padding
    frames = sum(piece.shape[2] for piece in pieces)
    if frames == 1 and before == weight.shape[2] - 1:
        # Exact: a single frame meets the last tap only, and all others would multiply zeros.
        weight, before = weight[:, :, -1:], 0
    size = (before + frames, top + x.shape[3] + bottom, left + x.shape[4] + right)
    dims = zip(size, weight.shape[2:], stride, strict=True)
    shape = (x.shape[0], weight.shape[0], *((length - taps) // step + 1 for length, taps, step in dims))
    if not accepts_frame_list(x, weight, stride):
        x, padding = _join(pieces, (before, *zero_padding[1:]), workspace)
        return _convolve_tensor(x, weight, bias, workspace, padding, stride, residual, shape)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last_3d)
    out = workspace.empty(shape, like=x)
    return _convolve_compiled(pieces, weight, bias, residual, out, workspace, (before, top, left), stride=stride)


def lay_out_weights(network: nn.Module) -> None:
    """Store the weights of convolutions in the order that cuDNN reads, in which PyTorch copies them at every call else.

    Their values, names and shapes stay; weights that other threads compute with are replaced, not overwritten. Those
    that are part of a larger tensor, as optimizers in shards have them, stay there.
    """
    for conv in network.modules():
        if not isinstance(conv, nn.Conv2d | nn.Conv3d) or type(conv.weight.data) is not Tensor:
            continue  # quantized weights, and others of classes of their own, have their own order
        order = torch.channels_last_3d if conv.weight.dim() == 5 else torch.channels_last
        is_part = conv.weight.untyped_storage().nbytes() > conv.weight.nbytes
        if not is_part and not conv.weight.is_contiguous(memory_format=order):
            with torch.inference_mode(conv.weight.is_inference()):
                conv.weight.data = conv.weight.data.contiguous(memory_format=order)


def accepts_frame_list(x: Tensor, weight: Tensor, stride: Stride = _NO_STRIDE) -> bool:
    """Whether `convolve` reads frames like those of `x` in place, wherever each of them is in memory."""
    if needs_plain_ops():
        return False
    return kernels.supports_amx(x, weight) or (stride == _NO_STRIDE and kernels.supports_winograd(x, weight))


def adds_bias_in_another_pass(x: Tensor) -> bool:
    """Whether `convolve` may pass over its result once more to add the bias, so that what follows should add it."""
    return not needs_plain_ops() and supports_triton(x)


def add_bias_into(out: Tensor, x: Tensor, bias: Tensor | None) -> None:
    """Write `x + bias` (B, C, T, H, W), or `x`, to `out`, which may be a view into a larger tensor. No gradients."""
    if bias is None:
        out.copy_(x)
    elif supports_triton(x) and supports_triton(out):
        from wan_vae.ops.triton.bias_residual import add_bias_and_residual

        add_bias_and_residual(x, bias, None, out)
    else:
        torch.add(x, bias.view(-1, 1, 1, 1), out=out)


def can_fuse_upsample(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_upsampled` supports `x` (B, C_in, T, H, W) and `weight` (C_out, C_in, 1, 3, 3)."""
    if needs_plain_ops():
        return False
    return kernels.supports_amx(x, weight) or kernels.supports_winograd(x, weight, upsample=True)


def convolve_upsampled(
    x: Tensor, weight: Tensor, bias: Tensor | None, workspace: Workspace, *, zero_padding: ZeroPadding
) -> Tensor:
    """Convolve `x` upsampled twice in height and width by nearest neighbor, without storing the upsampled tensor.

    Args:
        x: (B, C_in, T, H, W), before upsampling.
        weight: (C_out, C_in, 1, 3, 3).
        bias: (C_out,).
        workspace: Allocates the result.
        zero_padding: Of `x`, before upsampling: at most one row and column on each side.

    Returns:
        (B, C_out, T, 2H', 2W'), with H' and W' two less than the height and width of the padded `x`.
    """
    x = x.contiguous(memory_format=torch.channels_last_3d)
    batch, _, frames, height, width = x.shape
    _, top, bottom, left, right = zero_padding
    size = (2 * (top + height + bottom - 2), 2 * (left + width + right - 2))
    out = workspace.empty((batch, weight.shape[0], frames, *size), like=x)
    if not kernels.supports_amx(x, weight):
        return _convolve_compiled([x], weight, bias, None, out, workspace, (0, top, left), upsample=True)
    # Each of the four pixels that one pixel becomes is a convolution of `x` with 2x2 taps.
    for row, column in product(range(2), range(2)):
        taps, part = _subpixel_weight(weight, row, column, workspace), out[..., row::2, column::2]
        window = x[..., max(0, row - top) :, max(0, column - left) :]
        padding = (0, max(0, top - row), max(0, left - column))
        _convolve_compiled([window], taps, bias, None, part, workspace, padding)
    return out


def subpixel_weights(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) -> (4 C_out, C_in, 2, 2): nearest-neighbor upsampling and convolution as one convolution.

    In each direction, two of three taps fall on the same value. The outputs are the upper left, upper right, lower left
    and lower right of the four pixels that one pixel becomes. Taps are summed in float32 and rounded once.
    """
    parts, wide = [], weight.to(torch.promote_types(weight.dtype, torch.float32))
    for rows, columns in product(_MERGED_TAPS, _MERGED_TAPS):
        merged = [reduce(torch.add, (wide[:, :, tap] for tap in same)) for same in rows]
        taps = [reduce(torch.add, (row[:, :, tap] for tap in same)) for row in merged for same in columns]
        parts.append(torch.stack(taps, dim=2).reshape(*weight.shape[:2], 2, 2))
    # The order that cuDNN reads, into which PyTorch would bring it at every call.
    return torch.cat(parts).to(weight.dtype, memory_format=torch.channels_last)


def _subpixel_weight(weight: Tensor, row: int, column: int, workspace: Workspace) -> Tensor:
    """Return the part of `subpixel_weights` for one of the four pixels, (C_out, C_in, 1, 2, 2).

    Unlike there, `weight` is (C_out, C_in, 1, 3, 3), and all memory comes from the workspace.
    """
    like = weight if weight.dtype == torch.float64 else _FLOAT32.to(weight.device)
    taps = workspace.empty((*weight.shape[:2], 1, 2, 2), like=weight)
    merged = workspace.empty((*weight.shape[:2], 1, 1, 3), like=like)[:, :, 0, 0]
    total = workspace.empty((*weight.shape[:2], 1, 1, 1), like=like)[:, :, 0, 0, 0]
    for height, rows in enumerate(_MERGED_TAPS[row]):
        _sum_into(merged, [weight[:, :, 0, tap] for tap in rows])
        for width, columns in enumerate(_MERGED_TAPS[column]):
            _sum_into(total, [merged[:, :, tap] for tap in columns])
            taps[:, :, 0, height, width] = total
    return taps


def _sum_into(out: Tensor, addends: Sequence[Tensor]) -> None:
    out.copy_(addends[0])
    for addend in addends[1:]:
        out += addend


def _join(pieces: Sequence[Tensor], zeros: ZeroPadding, workspace: Workspace) -> tuple[Tensor, tuple[int, int]]:
    """Join pieces in time, with their zero padding where it is asymmetric.

    Returns:
        The tensor, and the symmetric padding in height and width that is left to the convolution.
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
    rows = (joined[..., :top, :], joined[..., top + height :, :])
    for margin in (joined[:, :, :before], *rows, joined[..., :left], joined[..., left + width :]):
        margin.zero_()
    start = before
    for piece in pieces:
        stop = start + piece.shape[2]
        joined[:, :, start:stop, top : top + height, left : left + width] = piece
        start = stop
    return joined, padding


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
    if _must_widen(x, stride, shape):
        return _convolve_widened(x, weight, bias, workspace, padding, stride, residual, shape)
    if needs_plain_ops():
        out = F.conv3d(x, weight, bias, stride, (0, *padding))
        return out if residual is None else out + residual
    x = x.contiguous(memory_format=torch.channels_last_3d)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last_3d)
    estimator = estimator_of(x)
    if estimator is not None:
        estimator.count_weight_copies(weight)
        out = estimator.count_convolution(weight, workspace.empty(shape, like=x))
        if estimator.device.type == "cuda":
            estimator.count_scratch(cudnn_workspace(x, out))
        return out
    if x.device.type == "cpu" and _onednn_supports(x.dtype):
        # PyTorch has no convolution into given memory, except for one that adds to its content.
        out = workspace.empty(shape, like=x)
        if residual is None:
            out.zero_()
        else:
            out.copy_(residual)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            out, x, weight, bias, [0, *padding], list(stride), [1, 1, 1], 1, "add", 1.0, None, [], None
        )
    if supports_triton(x):
        return convolve_on_gpu(x, weight, bias, padding, stride, residual)
    out = convolution(x, weight, bias, stride, (0, *padding))
    return out if residual is None else out.add_(residual)


def cudnn_workspace(x: Tensor, out: Tensor) -> int:
    """Return the bytes that plans allow cuDNN for a convolution of `x` to `out`, both channels-last.

    By count, not measured: kernels for tensor cores take channels in eights, and tensors that have others, such as
    frames, are copied; beside that a fixed allowance. cuDNN may ask for more. Where memory is short, PyTorch then takes
    the next of its plans, so that more would only be faster, and `CUDNN_CONV_WSCAP_DBG` caps it in MiB.

    Tensors of 2^31 elements cuDNN refuses before its version 9.3, and PyTorch then takes tens of times their size. They
    count as more than there is, so that plans take tiles.
    """
    if max(x.numel(), out.numel()) >= 2**31:
        return _NOT_PLANNED
    padded = [each.nbytes // each.shape[1] * (-(-each.shape[1] // 8) * 8) for each in (x, out) if each.shape[1] % 8]
    return _CUDNN_ALLOWANCE + sum(padded)


def _must_widen(x: Tensor, stride: Stride, shape: tuple[int, ...]) -> bool:
    """Whether a convolution on a CPU is computed in float32 and rounded: it would be wrong, or very slow."""
    if device_of(x).type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    if not needs_plain_ops() and _onednn_supports(torch.float32) and not _onednn_supports(x.dtype):
        return True
    # With AMX, oneDNN in torch 2.14 computes these wrongly in bfloat16. (A similar bug with other strides:
    # https://github.com/uxlfoundation/oneDNN/pull/5494.)
    return stride != _NO_STRIDE and shape[4] == 1 and x.dtype == torch.bfloat16


def _convolve_widened(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    padding: tuple[int, int],
    stride: Stride,
    residual: Tensor | None,
    shape: tuple[int, ...],
) -> Tensor:
    def widened(value: Tensor) -> Tensor:
        if needs_plain_ops():
            return value.float()
        wide = workspace.empty(tuple(value.shape), like=_FLOAT32.to(value.device))
        return wide.copy_(value)

    arguments = (None if bias is None else bias.float(), workspace, padding, stride)
    wide_residual = None if residual is None else widened(residual)
    out = _convolve_tensor(widened(x), widened(weight), *arguments, wide_residual, shape)
    if needs_plain_ops():
        return out.to(x.dtype)
    return workspace.empty(shape, like=x).copy_(out)


@cache
def check_convolutions(device: torch.device) -> None:
    """Compare a 3-D convolution on a device with the CPU's: on MPS, some releases of PyTorch compute it wrongly.

    See https://github.com/pytorch/pytorch/issues/141471.

    Raises:
        UserError: They differ by more than rounding.
    """
    # Whatever torch's defaults are.
    x = torch.linspace(-1, 1, 2 * 16 * 3 * 9 * 10, dtype=torch.float32, device="cpu").sin().reshape(2, 16, 3, 9, 10)
    weight = torch.linspace(-2, 1, 24 * 16 * 27, dtype=torch.float32, device="cpu").cos().reshape(24, 16, 3, 3, 3)
    expected = F.conv3d(x, weight)
    found = F.conv3d(x.to(device), weight.to(device)).cpu()
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error <= _MOST_ERROR:
        raise UserError(
            f"torch {torch.__version__} computes 3-D convolutions on {device} wrongly, by {error:.1e} of the largest"
            " value; use the CPU, or another release of torch."
        )


@cache
def _onednn_supports(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def convolve_on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    stride: Stride,
    residual: Tensor | None,
) -> Tensor:
    """Convolve on an NVIDIA GPU: by cuDNN, or by a Triton kernel where it was measured to be faster.

    Args:
        x: (B, C_in, T, H, W), channels-last.
        weight: (C_out, C_in, t, h, w).
        bias: (C_out,), or None.
        padding: Rows of zeros above and below, and columns of zeros left and right.
        stride: In time, height and width.
        residual: Of the result's shape, channels-last, or None.
    """
    # PyTorch for CPUs comes without Triton.
    from wan_vae.ops.triton.bias_residual import add_bias_and_residual
    from wan_vae.ops.triton.conv3d import candidates, pack_weight

    def by_cudnn() -> Tensor:
        # With its own bias, cuDNN would make another pass over memory.
        out = convolution(x, weight, None, stride, (0, *padding))
        return add_bias_and_residual(out.contiguous(memory_format=torch.channels_last_3d), bias, residual)

    precision = {"tf32": tf32_allowed()} if x.dtype == torch.float32 else {}
    key = autotune.describe("convolve", x.device, x, weight, residual, padding=padding, **precision)
    if stride != _NO_STRIDE or not autotune.is_tunable(key):
        return by_cudnn()
    implementations: dict[str, Callable[[], Tensor]] = {"cudnn": by_cudnn}
    implementations |= candidates(x, pack_weight(weight), bias, residual, None, padding)
    return autotune.run_fastest(key, implementations, x.device)


def _convolve_compiled(
    pieces: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
    zero_padding: tuple[int, int, int],
    *,
    stride: Stride = _NO_STRIDE,
    upsample: bool = False,
) -> Tensor:
    by_amx = kernels.supports_amx(pieces[0], weight)
    # The weight is packed in every call: kept, it would take up to four times its own memory.
    size = kernels.amx_packed_size(weight) if by_amx else kernels.winograd_packed_size(weight)
    like = out if by_amx else _FLOAT32.to(out.device)
    packed = workspace.empty((1, size, 1, 1, 1), like=like).flatten()
    estimator = estimator_of(out)
    if estimator is not None:
        return estimator.count_convolution(weight, out)
    # By AMX, a single view into a larger tensor is read in place if its channels are contiguous.
    if not by_amx or len(pieces) > 1 or pieces[0].stride(1) != 1:
        pieces = [piece.contiguous(memory_format=torch.channels_last_3d) for piece in pieces]
    operands = (pieces, weight, bias, residual, out, packed)
    if by_amx:
        return kernels.amx_conv3d(*operands, zero_padding=zero_padding, stride=stride)
    return kernels.winograd_conv3d(*operands, zero_padding=zero_padding, upsample=upsample)
