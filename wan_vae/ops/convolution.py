"""Convolution with bias and an added tensor, by the fastest way that this machine has."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.ops.recording import recorded
from wan_vae.ops.workspace import Workspace


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    *,
    padding: tuple[int, int] = (0, 0),
    stride: int = 1,
    skip: Tensor | None = None,
) -> Tensor:
    """Convolve `x` (B, C_in, T, H, W) with `weight` (C_out, C_in, t, h, w), and add `bias` (C_out) and `skip`.

    Args:
        workspace: Where the result's memory comes from, if no gradients are recorded.
        padding: Rows and columns of zeros on either side.
        stride: In height and width.
        skip: Of the result's shape (B, C_out, T', H', W').
    """
    if not recorded() and _onednn_serves(x):
        return _by_onednn(x, weight, bias, workspace, padding, stride, skip)
    out = F.conv3d(x, weight, bias, (1, stride, stride), (0, *padding))
    return out if skip is None else out + skip


def _onednn_serves(x: Tensor) -> bool:
    return x.device.type == "cpu" and bool(torch.backends.mkldnn.enabled) and _onednn_computes(x.dtype)


@cache
def _onednn_computes(dtype: torch.dtype) -> bool:
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return False  # a build without oneDNN
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _by_onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    workspace: Workspace,
    padding: tuple[int, int],
    stride: int,
    skip: Tensor | None,
) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], (0, *padding), (1, stride, stride), strict=True)
    size = [(length + 2 * zeros - taps) // step + 1 for length, taps, zeros, step in sizes]
    out = workspace.empty((x.shape[0], weight.shape[0], *size), like=x)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    # PyTorch has no convolution into given memory, but one that adds to what is there.
    if skip is None:
        out.zero_()
    else:
        out.copy_(skip)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        out, x, weight, bias, [0, *padding], [1, stride, stride], [1, 1, 1], 1, "add", 1.0, None, [], None
    )
