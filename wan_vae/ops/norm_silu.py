"""Wan's RMS norm and SiLU: in plain PyTorch, and by the fastest implementation for the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.ops import MIN_NORM
from wan_vae.ops.cpu import kernels
from wan_vae.ops.memory_estimator import estimator_of
from wan_vae.ops.triton import expects_triton, supports_triton

# Values that stay in the second-level cache of a CPU core.
_VALUES_IN_CACHE = 2**18
# On other devices without Triton (Windows, ROCm, MPS): enough for all cores of a GPU, in six temporary tensors.
_VALUES_AT_ONCE = 2**24
_TEMPORARY_TENSORS = 6


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """`x / max(||x||_2, 1e-12) * sqrt(C) * gamma` over dimension 1 of `x`; `gamma` is (C, 1, ...)."""
    # The sum of squares overflows float16 and loses digits in bfloat16.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = gamma.to(wide.dtype) * gamma.shape[0] ** 0.5
    # On a CPU, PyTorch's norm over a dimension other than the last takes 12 times as long. The bound is inside the
    # root, because the root has no gradient at zero.
    squared_norm = wide.square().sum(dim=1, keepdim=True)
    return (wide * squared_norm.clamp_min(MIN_NORM**2).rsqrt() * scale).to(x.dtype)


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """`silu(rms_norm(x, gamma))` of `x` (B, C, T, H, W), with gradients; `gamma` is (C, 1, 1, 1)."""
    return F.silu(rms_norm(x, gamma))


def norm_silu_into(out: Tensor, x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> None:
    """Write `norm_silu(x + bias, gamma)` to `out`, which may be a view into a larger tensor. No gradients."""
    estimator = estimator_of(x)
    if estimator is not None:
        if not expects_triton(estimator.device, x.dtype):
            row = x.shape[0] * x.shape[1] * x.shape[4]
            portion = min(row * x.shape[3], max(row, _VALUES_AT_ONCE))
            estimator.count_scratch(_TEMPORARY_TENSORS * portion * torch.promote_types(x.dtype, torch.float32).itemsize)
        return
    if bias is None and kernels.supports_norm_silu(x) and kernels.supports_norm_silu(out):
        kernels.norm_silu(x, gamma, out)
    elif supports_triton(x) and supports_triton(out):
        from wan_vae.ops.triton.norm_silu import norm_silu as triton_norm_silu

        triton_norm_silu(x, gamma, out, bias)
    else:
        _norm_silu_by_rows(out, x, gamma, bias, _VALUES_IN_CACHE if x.device.type == "cpu" else _VALUES_AT_ONCE)


def _norm_silu_by_rows(out: Tensor, x: Tensor, gamma: Tensor, bias: Tensor | None, values: int) -> None:
    # A few rows at a time stay in the cache between the steps of the arithmetic: on a CPU 2 to 5 times as fast as whole
    # tensors. Elsewhere they bound the temporary tensors, which would be six times the input.
    rows = max(1, values // max(1, x.shape[0] * x.shape[1] * x.shape[4]))
    for frame, out_frame in zip(torch.split(x, 1, dim=2), torch.split(out, 1, dim=2), strict=True):
        for part, target in zip(torch.split(frame, rows, dim=3), torch.split(out_frame, rows, dim=3), strict=True):
            wide = part.to(torch.promote_types(x.dtype, torch.float32))
            if bias is not None:
                wide = wide + bias.to(wide.dtype).view(-1, 1, 1, 1)
            target.copy_(F.silu(rms_norm(wide, gamma), inplace=True))
