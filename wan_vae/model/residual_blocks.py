"""The residual block of a config, and the four classical ones beside Wan's own.

Each is the block of its paper with every convolution causal in time; with a single frame it is that block's
two-dimensional form, whose kernels are the last temporal taps. Batch norm uses its running statistics in eval mode, so
that a stream sees what the whole clip sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.blocks import PlainBlock, ResidualBlock
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d


def residual_block(in_channels: int, out_channels: int, config: VAEConfig) -> nn.Module:
    """Return a block of the kind `config.block`; `block(x, halo)` is (B, C_in, T, H, W) -> (B, C_out, T, H, W)."""
    match config.block:
        case "wan":
            return ResidualBlock(in_channels, out_channels, config.dropout)
        case "plain":
            return PlainBlock(in_channels, out_channels, config.dropout)
        case "resnet":
            return ResNetBlock(in_channels, out_channels, config.dropout)
        case "bottleneck":
            return BottleneckBlock(in_channels, out_channels, config.dropout, ratio=config.bottleneck_ratio)
        case "preact":
            return PreActivationBlock(in_channels, out_channels, config.dropout)
        case "dense":
            return DenseBlock(
                in_channels, out_channels, config.dropout, growth=config.dense_growth, layers=config.dense_layers
            )
        case kind:
            raise AssertionError(f"VAEConfig let the block kind {kind!r} through")


class ResNetBlock(nn.Module):
    """conv, BN, ReLU, conv, BN, add, ReLU (He et al. 2015, figure 5 left, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.shortcut = normalized_projection(in_channels, out_channels)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x, halo)))
        branch = self.norm2(self.conv2(self.dropout(branch), halo))
        return F.relu(branch + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1x1, 3x3x3, 1x1x1 convolutions with BN and ReLU, add, ReLU (He et al. 2015, figure 5 right)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, *, ratio: int) -> None:
        super().__init__()
        narrow = max(1, out_channels // ratio)
        self.conv1 = nn.Conv3d(in_channels, narrow, 1)
        self.norm1 = nn.BatchNorm3d(narrow)
        self.conv2 = CausalConv3d(narrow, narrow)
        self.norm2 = nn.BatchNorm3d(narrow)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = nn.Conv3d(narrow, out_channels, 1)
        self.norm3 = nn.BatchNorm3d(out_channels)
        self.shortcut = normalized_projection(in_channels, out_channels)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x)))
        branch = F.relu(self.norm2(self.conv2(branch, halo)))
        branch = self.norm3(self.conv3(self.dropout(branch)))
        return F.relu(branch + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """BN, ReLU, conv, twice, add: the identity path is left untouched (He et al. 2016,
    https://arxiv.org/abs/1603.05027).
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        branch = self.conv1(F.relu(self.norm1(x)), halo)
        branch = self.conv2(self.dropout(F.relu(self.norm2(branch))), halo)
        return branch + self.shortcut(x)


class DenseBlock(nn.Module):
    """Layers of BN, ReLU, conv that each append `growth` channels to all before them, then a 1x1x1 transition to the
    asked width (Huang et al. 2017, https://arxiv.org/abs/1608.06993).
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, *, growth: int, layers: int) -> None:
        super().__init__()
        widths = [in_channels + index * growth for index in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm3d(width) for width in widths)
        self.convs = nn.ModuleList(CausalConv3d(width, growth) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.transition_norm = nn.BatchNorm3d(in_channels + layers * growth)
        self.transition = nn.Conv3d(in_channels + layers * growth, out_channels, 1)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            grown = conv(self.dropout(F.relu(norm(x))), halo)
            x = torch.cat([x, grown], dim=1)
        return self.transition(F.relu(self.transition_norm(x)))


def normalized_projection(in_channels: int, out_channels: int) -> nn.Module:
    """Return the shortcut of a post-activation block: the identity, or 1x1x1 conv and BN where the width changes."""
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv3d(in_channels, out_channels, 1), nn.BatchNorm3d(out_channels))
