"""Wan's norm, in plain PyTorch."""

import torch
from torch import Tensor

SHORTEST = 1e-12


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """`x / max(||x||_2, 1e-12) * sqrt(C) * gamma` over dimension 1 of `x`; `gamma` is (C, 1, ...)."""
    # The sum of squares overflows float16 and loses digits in bfloat16.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = gamma.to(wide.dtype) * gamma.shape[0] ** 0.5
    # On a CPU, PyTorch's norm over a dimension that is not the last takes 12 times as long. The bound is inside the
    # root, for at zero the root has no gradient.
    squared_length = wide.square().sum(dim=1, keepdim=True)
    return (wide * squared_length.clamp_min(SHORTEST**2).rsqrt() * scale).to(x.dtype)
