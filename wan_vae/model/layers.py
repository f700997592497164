"""The layers that the whole network is made of: norm, causal convolution, per-frame convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.model.halo import Halo, Reach

SHORTEST = 1e-12
_VALUES_IN_CACHE = 2**18


class RMSNorm(nn.Module):
    """`x / ||x||_2 * sqrt(C) * gamma` over the channels of every pixel (`RMS_norm` in Wan's vae.py).

    Args:
        channels: C.
        pixel_dimensions: Dimensions after the channels: 3 for (B, C, T, H, W), 2 for (B, C, H, W).
    """

    def __init__(self, channels: int, pixel_dimensions: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * pixel_dimensions))

    def forward(self, x: Tensor) -> Tensor:
        # The sum of squares overflows float16 and loses digits in bfloat16.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = self.gamma.to(wide.dtype) * self.gamma.shape[0] ** 0.5
        # On a CPU, PyTorch's norm over a dimension that is not the last takes 12 times as long. The bound is inside the
        # root, for at zero the root has no gradient.
        squared_length = wide.square().sum(dim=1, keepdim=True)
        return (wide * squared_length.clamp_min(SHORTEST**2).rsqrt() * scale).to(x.dtype)


class NormSiLU(RMSNorm):
    """`RMSNorm` and SiLU, before every convolution of Wan's blocks: (B, C, T, H, W) -> the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.silu(super().forward(x))
        # Each step of the arithmetic would fetch from memory what the one before has put there: on a CPU twice to five
        # times as slow as a few rows after the other, which stay in the cache.
        out = torch.empty_like(x)
        rows = max(1, _VALUES_IN_CACHE // max(1, x.shape[0] * x.shape[1] * x.shape[4]))
        for frame, target in zip(torch.split(x, 1, dim=2), torch.split(out, 1, dim=2), strict=True):
            for part, place in zip(torch.split(frame, rows, dim=3), torch.split(target, rows, dim=3), strict=True):
                wide = part.to(torch.promote_types(x.dtype, torch.float32))
                place.copy_(F.silu(super().forward(wide), inplace=True))
        return out


class CausalConv3d(nn.Conv3d):
    """A convolution that looks at past frames only, and at as many pixels on every side (`CausalConv3d` in Wan).

    (B, C_in, T, H, W) -> (B, C_out, T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        frames, height, width = kernel_size
        self.reach = Reach(frames - 1, height // 2, height // 2, width // 2, width // 2)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        x, zeros = halo.surround(self, x, self.reach)
        return conv3d_with_zeros(x, zeros, self.weight, self.bias)


class FrameConv2d(nn.Conv2d):
    """A two-dimensional convolution of every frame: (B, C_in, T, H, W) -> (B, C_out, T, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, *, reach: Reach, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride)
        self.reach = reach

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        x, zeros = halo.surround(self, x, self.reach)
        return conv3d_with_zeros(x, zeros, self.weight.unsqueeze(2), self.bias, stride=(1, *self.stride))


def _onednn_serves(x: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False  # the compiler makes that choice itself
    return x.device.type == "cpu" and x.dtype == torch.float32 and bool(torch.backends.mkldnn.enabled)


def conv3d_with_zeros(
    x: Tensor, zeros: Reach, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...] = (1, 1, 1)
) -> Tensor:
    """Convolve `x` (B, C, T, H, W) as if `zeros` zero frames and pixels lay around it."""
    if x.shape[2] == 1 and zeros.before == weight.shape[2] - 1:
        # An exact saving: a frame with nothing before it meets one tap, the others would multiply zeros.
        weight = weight[:, :, -1:]
        zeros = zeros._replace(before=0)
    if zeros.top == zeros.bottom and zeros.left == zeros.right:
        sides, padding = (0, 0, 0, 0), (0, zeros.top, zeros.left)
    else:
        sides, padding = (zeros.left, zeros.right, zeros.top, zeros.bottom), (0, 0, 0)
    if zeros.before > 0 or any(sides):
        x = F.pad(x, (*sides, zeros.before, 0))
    if _onednn_serves(x):
        # PyTorch itself takes oneDNN for large inputs only; with few frames or channels its own way is several times
        # slower, and unfolds the input into a matrix 27 times its size.
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)
