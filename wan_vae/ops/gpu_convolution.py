"""Convolution on an NVIDIA GPU: cuDNN's, or ours for shapes where it was measured to be faster.

Measuring takes minutes and happens where somebody asked for it: see `wan_vae.ops.selection`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.ops import selection, triton_conv3d
from wan_vae.ops.triton_add import add_bias_and_residual


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    stride: tuple[int, int, int],
    residual: Tensor | None,
) -> Tensor:
    """As `wan_vae.ops.convolution.convolve`; `x` (B, C_in, T, H, W) and `residual` are stored channels-last."""

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
