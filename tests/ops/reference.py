"""What the kernels of this package compute, in plain PyTorch.

`norm_silu` and `add_bias_and_residual` are twins of those in `wan_vae/ops/triton`, and `causal_conv3d` computes what
every one of `wan_vae.ops.triton.conv3d.candidates` does. Tensors are (B, C, T, H, W) of
any floating dtype and any strides; the arithmetic is in float32, or in float64 where the tensors are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_silu(x: Tensor, gamma: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write `silu(y / ||y||_2 * sqrt(C) * gamma)` of `y = x + bias` to `out`; the length is over a pixel's channels.

    Args:
        x: (B, C, T, H, W).
        gamma: C values, of any shape and dtype.
        out: Like `x`; may be a part of a larger tensor. Rounded to once.
        bias: (C,), or None.

    Returns:
        `out`.
    """
    wide = _with_bias_and_residual(x.to(_wide(x)), bias, None)
    scale = gamma.to(wide.dtype).reshape(-1, 1, 1, 1) * x.shape[1] ** 0.5
    # The bound is inside the root, as in the network's own layer, which is what this must equal.
    squared_length = wide.square().sum(dim=1, keepdim=True)
    return out.copy_(F.silu(wide * squared_length.clamp_min(1e-24).rsqrt() * scale))


def add_bias_and_residual(x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Add to `x` (B, C, T, H, W), in place, a bias (C,) and a residual of the shape of `x`; round once.

    Returns:
        `x`.
    """
    return x.copy_(_with_bias_and_residual(x.to(_wide(x)), bias, residual))


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None = None,
    *,
    spatial_padding: tuple[int, int] = (1, 1),
) -> Tensor:
    """Convolve with stride 1 and add a bias and a residual before the one rounding.

    Args:
        x: (B, C_in, T, H, W), the frames that lie before the first output frame among them.
        weight: (C_out, C_in, kT, kH, kW), of the dtype of `x`.
        bias: (C_out,), or None.
        residual: Of the shape of the result, or None; may be `out`.
        out: Where the result goes; may be a part of a larger tensor. None allocates it.
        spatial_padding: Rows of zeros above and below every frame, and columns of zeros left and right of it.

    Returns:
        `out`: (B, C_out, T - kT + 1, H + 2 * rows - kH + 1, W + 2 * columns - kW + 1), of the dtype of `x`.
    """
    wide = _wide(x)
    total = F.conv3d(x.to(wide), weight.to(wide), padding=(0, *spatial_padding))
    total = _with_bias_and_residual(total, bias, residual)
    if out is None:
        return total.to(x.dtype, memory_format=torch.channels_last_3d)
    return out.copy_(total)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _with_bias_and_residual(wide: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if bias is not None:
        wide = wide + bias.to(wide.dtype).view(-1, 1, 1, 1)
    if residual is not None:
        wide = wide + residual.to(wide.dtype)
    return wide
