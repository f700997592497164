"""The blocks of the network: Wan's residual block, the classical kinds to put in its place, and attention.

All take and return (B, C, T, H, W) and are called with a halo. Each classical block is that of its paper with every
convolution causal in time; on a single frame it is that block's two-dimensional form, whose kernels are the last
temporal taps. In eval mode batch norm uses its running statistics, so a stream gives the result of the whole clip.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wan_vae.config import VAEConfig
from wan_vae.model.halo import Activation, Halo
from wan_vae.model.layers import AfterBias, CausalConv3d, NormSiLU, PointwiseConv2d, RMSNorm, is_altered, pad_input
from wan_vae.ops.attention import attention
from wan_vae.ops.conv3d import adds_bias_in_another_pass
from wan_vae.ops.precision import Conv3d


class PlainBlock(nn.Module):
    """norm, SiLU, 3x3x3 convolution, twice: Wan's residual block without the skip."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = NormSiLU(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = NormSiLU(out_channels, dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.shortcut: nn.Module | None = None

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        skip = None if self.shortcut is None else self.shortcut(x, halo)
        norm2: Activation = self.norm2
        options = {}
        # An adapter around the convolution, such as LoRA, adds the bias itself, and hooks expect it.
        plain = type(self.conv1) is CausalConv3d and not is_altered(self.conv1)
        if plain and self.conv1.bias is not None and adds_bias_in_another_pass(x):
            norm2, options = AfterBias(self.norm2, self.conv1.bias), {"with_bias": False}
        # One expression, so that what conv1 returns is freed before conv2 allocates its result.
        inner = pad_input(
            self.conv2, self.conv1(pad_input(self.conv1, x, halo, self.norm1), halo, **options), halo, norm2
        )
        return self.conv2(inner, halo, skip)


class ResidualBlock(PlainBlock):
    """`PlainBlock` plus its input, projected where widths differ (`ResidualBlock` in Wan's vae.py)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(in_channels, out_channels, dropout)
        self.shortcut = (
            Identity() if in_channels == out_channels else CausalConv3d(in_channels, out_channels, (1, 1, 1))
        )


class Identity(nn.Identity):
    """The shortcut between equal widths."""

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        return x


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of each frame, plus its input (`AttentionBlock` in Wan's vae.py)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, pixel_dimensions=2)
        self.to_qkv = PointwiseConv2d(channels, 3 * channels)
        self.proj = PointwiseConv2d(channels, channels)
        # So that the block starts as the identity.
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        batch, _, _, height, _ = x.shape
        normed = rearrange(self.norm(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=batch)
        # PyTorch's fused attention needs contiguous channels; its fallback materializes all pairs of pixels.
        each = rearrange(self.to_qkv(normed, halo), "b (three c) t h w -> three (b t) 1 (h w) c", three=3).contiguous()
        query, key, value = each.unbind()
        attended = attention(query, halo.neighbors.all_gather_pixels(key), halo.neighbors.all_gather_pixels(value))
        return self.proj(rearrange(attended, "(b t) 1 (h w) c -> b c t h w", b=batch, h=height), halo, x)


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
        self.conv1 = Conv3d(in_channels, narrow, 1)
        self.norm1 = nn.BatchNorm3d(narrow)
        self.conv2 = CausalConv3d(narrow, narrow)
        self.norm2 = nn.BatchNorm3d(narrow)
        self.dropout = nn.Dropout(dropout)
        self.conv3 = Conv3d(narrow, out_channels, 1)
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
        self.shortcut = nn.Identity() if in_channels == out_channels else Conv3d(in_channels, out_channels, 1)

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
        self.transition = Conv3d(in_channels + layers * growth, out_channels, 1)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            grown = conv(self.dropout(F.relu(norm(x))), halo)
            x = torch.cat([x, grown], dim=1)
        return self.transition(F.relu(self.transition_norm(x)))


def normalized_projection(in_channels: int, out_channels: int) -> nn.Module:
    """Return the shortcut of a post-activation block: the identity, or 1x1x1 conv and BN where the width changes."""
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(Conv3d(in_channels, out_channels, 1), nn.BatchNorm3d(out_channels))


class Blocks(nn.ModuleList):
    """Consecutive residual blocks, the first of which changes the width.

    With `recompute` set, the backward pass recomputes the activations inside each block (gradient checkpointing).
    """

    def __init__(self, in_channels: int, out_channels: int, count: int, config: VAEConfig) -> None:
        widths = [in_channels] + [out_channels] * count
        super().__init__(residual_block(widths[index], out_channels, config) for index in range(count))
        self.recompute = False

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        for block in self:
            if self.recompute and halo.repeatable and torch.is_grad_enabled():
                x = checkpoint(block, x, halo, use_reentrant=False, **_checkpoint_contexts(block))
            else:
                x = block(x, halo)
        return x


def _checkpoint_contexts(block: nn.Module) -> dict[str, Any]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    if not norms or torch.compiler.is_compiling():  # the compiler handles buffers
        return {}
    return {"context_fn": lambda: (nullcontext(), _frozen_statistics(norms))}


@contextmanager
def _frozen_statistics(norms: list[nn.BatchNorm3d]) -> Iterator[None]:
    # A recomputed batch must not enter the running statistics a second time.
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Middle(nn.Module):
    """Block, attention if the config has it, and block at the lowest resolution."""

    def __init__(self, channels: int, config: VAEConfig) -> None:
        super().__init__()
        self.block1 = residual_block(channels, channels, config)
        self.attention = AttentionBlock(channels) if config.middle_attention else None
        self.block2 = residual_block(channels, channels, config)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        x = self.block1(x, halo)
        if self.attention is not None:
            x = self.attention(x, halo)
        return self.block2(x, halo)


class Head(nn.Module):
    """norm, SiLU and the last 3x3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = NormSiLU(in_channels)
        self.conv = CausalConv3d(in_channels, out_channels)

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        return self.conv(pad_input(self.conv, x, halo, self.norm), halo)
