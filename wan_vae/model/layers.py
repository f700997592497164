"""The layers that the whole network is made of: norms and the causal convolution."""

import torch
from torch import Tensor, nn

from wan_vae.model.halo import Activation, Halo, PaddedInput, Padding
from wan_vae.ops.conv3d import accepts_frame_list, convolve
from wan_vae.ops.norm_silu import norm_silu, norm_silu_into, rms_norm


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
        return rms_norm(x, self.gamma)


class NormSiLU(RMSNorm):
    """`RMSNorm`, SiLU and in training dropout, before every convolution of Wan's blocks.

    (B, C, T, H, W) -> the same shape.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(norm_silu(x, self.gamma))

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the result to `out`, which may be a part of a larger tensor. No gradients."""
        norm_silu_into(out, x, self.gamma)
        if self.training:
            out.copy_(self.dropout(out))


class CausalConv3d(nn.Conv3d):
    """A convolution that looks at past frames only, and at as many pixels on every side (`CausalConv3d` in Wan).

    (B, C_in, T, H, W) -> (B, C_out, T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        frames, height, width = kernel_size
        self.reach = Padding(frames - 1, height // 2, height // 2, width // 2, width // 2)

    def pad_input(self, x: Tensor, halo: Halo, activation: Activation | None = None) -> PaddedInput:
        """Return `activation(x)` with what `halo` knows of around it, which `forward` takes for `x`.

        In a step of its own, `x` need not be held while the convolution's result comes into being.
        """
        return halo.pad(self, x, self.reach, activation, apart=accepts_frame_list(x, self.weight))

    def forward(  # type: ignore[override]
        self, x: Tensor | PaddedInput, halo: Halo, skip: Tensor | None = None
    ) -> Tensor:
        """Convolve `x`, and add `skip` (B, C_out, T, H, W): in one pass through memory where possible.

        Args:
            x: The input, or what `pad_input` made of it.
        """
        pieces, zeros = self.pad_input(x, halo) if isinstance(x, Tensor) else x
        return convolve(pieces, self.weight, self.bias, halo.workspace, zero_padding=zeros, residual=skip)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of every frame: (B, C_in, T, H, W) -> (B, C_out, T, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, halo: Halo, skip: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Convolve `x`, and add `skip` (B, C_out, T, H, W)."""
        return convolve([x], self.weight.unsqueeze(2), self.bias, halo.workspace, residual=skip)
