"""Convolution with bias and a residual, by the fastest way that this machine has."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.ops import native
from wan_vae.ops.native_amx import amx_conv3d, amx_packed_size, amx_serves
from wan_vae.ops.recording import recorded
from wan_vae.ops.rehearsal import device_of, rehearsal_of
from wan_vae.ops.triton_check import triton_serves
from wan_vae.ops.workspace import Workspace

_FLOAT32 = torch.empty(0, dtype=torch.float32, device="cpu")


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    *,
    padding: tuple[int, int] = (0, 0),
    stride: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve `x` (B, C_in, T, H, W) with `weight` (C_out, C_in, t, h, w), and add `bias` (C_out) and `residual`.

    Args:
        workspace: Where the result's memory comes from, if no gradients are recorded.
        padding: Rows and columns of zeros on either side.
        stride: In height and width.
        residual: Of the result's shape (B, C_out, T', H', W').
    """
    width = (x.shape[4] + 2 * padding[1] - weight.shape[4]) // stride + 1
    if stride > 1 and width == 1 and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        # With AMX, the oneDNN of torch 2.14 computes these wrongly; in float32 it does not. (A bug like it, with other
        # strides: https://github.com/uxlfoundation/oneDNN/pull/5494.)
        wide = (None if value is None else value.float() for value in (x, weight, bias, residual))
        x, weight, bias, residual = wide  # type: ignore[assignment]
        out = convolve(x, weight, bias, workspace, padding=padding, stride=stride, residual=residual)
        return out.bfloat16()
    if recorded():
        out = F.conv3d(x, weight, bias, (1, stride, stride), (0, *padding))
        return out if residual is None else out + residual
    x = x.contiguous(memory_format=torch.channels_last_3d)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last_3d)
    sizes = zip(x.shape[2:], weight.shape[2:], (0, *padding), (1, stride, stride), strict=True)
    size = [(length + 2 * zeros - taps) // step + 1 for length, taps, zeros, step in sizes]
    shape = (x.shape[0], weight.shape[0], *size)
    rehearsal = rehearsal_of(x)
    if rehearsal is not None:
        surrounded = stride == 1 and padding == (1, 1)
        return rehearsal.convolve(weight, workspace.empty(shape, like=x), workspace, surrounded=surrounded)
    if amx_serves(x, weight):
        out = workspace.empty(shape, like=x)
        return _by_amx(x, weight, bias, residual, out, workspace, padding=padding, stride=stride)
    if stride == 1 and padding == (1, 1) and native.winograd_serves(x, weight):
        return _by_winograd(x, weight, bias, residual, workspace.empty(shape, like=x), workspace)
    if x.device.type == "cpu" and _onednn_computes(x.dtype):
        out = workspace.empty(shape, like=x)
        return _by_onednn(x, weight, bias, padding, stride, residual, out)
    if triton_serves(x):
        from wan_vae.ops.gpu_convolution import convolve as on_gpu

        return on_gpu(x, weight, bias, padding, stride, residual)
    out = F.conv3d(x, weight, bias, (1, stride, stride), (0, *padding))
    return out if residual is None else out.add_(residual)


def doubles_on_the_way(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_doubled` can convolve `x` (B, C_in, T, H, W) with `weight` (C_out, C_in, 1, 3, 3)."""
    if rehearsal_of(x) is not None:
        return device_of(x).type == "cpu"
    return not recorded() and (amx_serves(x, weight) or native.winograd_serves(x, weight, doubled=True))


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor | None, workspace: Workspace) -> Tensor:
    """Convolve what `x` (B, C_in, T, H, W) is with every pixel twice in height and width: (B, C_out, T, 2H, 2W)."""
    batch, _, frames, height, width = x.shape
    out = workspace.empty((batch, weight.shape[0], frames, 2 * height, 2 * width), like=x)
    rehearsal = rehearsal_of(x)
    if rehearsal is not None:
        return rehearsal.convolve(weight, out, workspace, surrounded=True)
    if amx_serves(x, weight):
        # The pixels at one of the four places in a pair of pairs are a convolution of 2x2 taps.
        for place, taps in enumerate(summed_taps(weight.squeeze(2)).unsqueeze(2).chunk(4)):
            down, right = divmod(place, 2)
            part = out[..., down::2, right::2]
            _by_amx(x, taps, bias, None, part, workspace, padding=(1 - down, 1 - right))
        return out
    return _by_winograd(x, weight, bias, None, out, workspace, doubled=True)


def summed_taps(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) -> (4 C_out, C_in, 2, 2), for pixels that come in equal pairs.

    In each direction two of three taps meet the same value. The outputs are those at the upper left, upper right, lower
    left and lower right place of a pair of pairs.
    """
    first, middle, last = weight.unbind(dim=2)
    rows = [torch.stack([first, middle + last], dim=2), torch.stack([first + middle, last], dim=2)]
    places = []
    for row in rows:
        first, middle, last = row.unbind(dim=3)
        places += [torch.stack([first, middle + last], dim=3), torch.stack([first + middle, last], dim=3)]
    return torch.cat(places)


def _by_amx(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
    *,
    padding: tuple[int, int],
    stride: int = 1,
) -> Tensor:
    packed = workspace.empty((1, amx_packed_size(weight), 1, 1, 1), like=x).flatten()
    return amx_conv3d(x, weight, bias, residual, out, packed, padding=padding, stride=stride)


def _by_winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
    doubled: bool = False,
) -> Tensor:
    # Four times as large as the weight, and so never kept.
    packed = workspace.empty((1, native.packed_size(weight), 1, 1, 1), like=_FLOAT32).flatten()
    return native.winograd_conv3d(x, weight, bias, residual, out, packed, doubled=doubled)


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
    stride: int,
    residual: Tensor | None,
    out: Tensor,
) -> Tensor:
    # PyTorch has no convolution into given memory, but one that adds to what is there.
    if residual is None:
        out.zero_()
    else:
        out.copy_(residual)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        out, x, weight, bias, [0, *padding], [1, stride, stride], [1, 1, 1], 1, "add", 1.0, None, [], None
    )
