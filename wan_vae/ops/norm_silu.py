"""RMSNorm and SiLU, by the fastest way that this machine has.

Wan's norm, in plain PyTorch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.ops.cpu import kernels as native
from wan_vae.ops.dispatch import supports_triton
from wan_vae.ops.memory_estimator import estimator_of

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


_VALUES_IN_CACHE = 2**18


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """RMSNorm and SiLU of `x` (B, C, T, H, W), with gradients; `gamma` is (C, 1, 1, 1)."""
    return F.silu(rms_norm(x, gamma))


def norm_silu_into(out: Tensor, x: Tensor, gamma: Tensor) -> None:
    """Write what `norm_silu` returns to `out`, which may be a part of a larger tensor. No gradients."""
    if estimator_of(x) is not None:
        return
    if native.library() is not None and native.supports_norm_silu(x) and native.supports_norm_silu(out):
        native.norm_silu(x, gamma, out)
    elif supports_triton(x) and supports_triton(out):
        from wan_vae.ops.triton.norm_silu import norm_silu as on_gpu

        on_gpu(x, gamma, out)
    elif x.device.type == "cpu":
        _row_by_row(out, x, gamma)
    else:
        out.copy_(norm_silu(x, gamma))


def _row_by_row(out: Tensor, x: Tensor, gamma: Tensor) -> None:
    # Each step of the arithmetic would fetch from memory what the one before has put there: on a CPU twice to five
    # times as slow as a few rows after the other, which stay in the cache.
    rows = max(1, _VALUES_IN_CACHE // max(1, x.shape[0] * x.shape[1] * x.shape[4]))
    for frame, target in zip(torch.split(x, 1, dim=2), torch.split(out, 1, dim=2), strict=True):
        for part, place in zip(torch.split(frame, rows, dim=3), torch.split(target, rows, dim=3), strict=True):
            wide = part.to(torch.promote_types(x.dtype, torch.float32))
            place.copy_(F.silu(rms_norm(wide, gamma), inplace=True))
