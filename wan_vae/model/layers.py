"""The layers that the whole network is made of: norms and the causal convolution."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan_vae.model.halo import Activation, Halo, PaddedInput, Padding
from wan_vae.ops.conv3d import accepts_frame_list, convolve
from wan_vae.ops.norm_silu import norm_silu, norm_silu_into, rms_norm


def is_altered(module: nn.Module) -> bool:
    """Whether a module has hooks or another `forward`, so that it must be called to do all that it does."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


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
    """`RMSNorm`, SiLU and, in training, dropout: what precedes every convolution of Wan's blocks.

    (B, C, T, H, W) -> the same shape.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(norm_silu(x, self.gamma))

    def into(self, out: Tensor, x: Tensor, bias: Tensor | None = None) -> None:
        """Write the result for `x + bias` to `out`, which may be part of a larger tensor. No gradients."""
        norm_silu_into(out, x, self.gamma, bias)
        if self.training:
            out.copy_(self.dropout(out))


class AfterBias(NamedTuple):
    """A norm that adds the bias of the convolution before: on GPUs, a pass over memory of its own otherwise."""

    norm: NormSiLU
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.norm(x + self.bias.view(-1, 1, 1, 1))

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the result to `out`. No gradients."""
        self.norm.into(out, x, self.bias)


class CausalConv3d(nn.Conv3d):
    """A convolution over past frames only, zero-padded in space (`CausalConv3d` in Wan's vae.py).

    (B, C_in, T, H, W) -> (B, C_out, T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        frames, height, width = kernel_size
        self.needed = Padding(frames - 1, height // 2, height // 2, width // 2, width // 2)

    def forward(  # type: ignore[override]
        self, x: Tensor | PaddedInput, halo: Halo, skip: Tensor | None = None, *, with_bias: bool = True
    ) -> Tensor:
        """Convolve `x` and add `skip` (B, C_out, T, H, W), in one pass over memory where possible.

        Args:
            x: The input, or the result of `pad_input`.
            halo: Answers what lies around `x`.
            skip: The residual, of the result's shape.
            with_bias: Whether to add the bias.
        """
        pieces, zero_padding = pad_input(self, x, halo) if isinstance(x, Tensor) else x
        bias = self.bias if with_bias else None
        return convolve(pieces, self.weight, bias, halo.workspace, zero_padding=zero_padding, residual=skip)


def remove_past(network: nn.Module) -> None:
    """Leave every convolution the last of its temporal taps: what it computes on a clip's first frame, which is padded
    with zeros in time.
    """
    for conv in network.modules():
        if isinstance(conv, nn.Conv3d):
            conv.weight = nn.Parameter(conv.weight.detach()[:, :, -1:].clone())
            conv.kernel_size = (1, *conv.kernel_size[1:])
        if isinstance(conv, CausalConv3d):
            conv.needed = conv.needed._replace(before=0)


def pad_input(conv: nn.Module, x: Tensor, halo: Halo, activation: Activation | None = None) -> "Tensor | PaddedInput":
    """Return `activation(x)` with everything `halo` knows around it, in the form that `conv` takes.

    Doing this before the call lets `x` be freed before the convolution's result is allocated. A module that wraps a
    convolution (an adapter such as LoRA) gets the plain `activation(x)` and pads where it calls the convolution.
    """
    if isinstance(conv, CausalConv3d):
        norm = activation.norm if isinstance(activation, AfterBias) else activation
        if activation is not None and (type(norm) is not NormSiLU or is_altered(norm)):
            x, activation = activation(x), None
        return halo.pad(conv, x, conv.needed, activation, split=accepts_frame_list(x, conv.weight))
    return x if activation is None else activation(x)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution of every frame: (B, C_in, T, H, W) -> (B, C_out, T, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, halo: Halo, skip: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Convolve `x` and add `skip` (B, C_out, T, H, W)."""
        return convolve([x], self.weight.unsqueeze(2), self.bias, halo.workspace, residual=skip)
