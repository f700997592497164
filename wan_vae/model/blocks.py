"""Wan's own blocks: the residual block, the same without its skip, and attention over each frame.

All take and return (B, C, T, H, W) and are called with a halo.
"""

from einops import rearrange
from torch import Tensor, nn

from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, NormSiLU, PointwiseConv2d, RMSNorm
from wan_vae.ops.attention import attention


class PlainBlock(nn.Module):
    """norm, SiLU, 3x3x3 convolution, twice: Wan's residual block without the skip."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = NormSiLU(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = NormSiLU(out_channels, dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels)

    def forward(self, x: Tensor, halo: Halo, skip: Tensor | None = None) -> Tensor:
        inner = self.conv2.surrounded(self.conv1(self.conv1.surrounded(x, halo, self.norm1), halo), halo, self.norm2)
        return self.conv2(inner, halo, skip)


class ResidualBlock(PlainBlock):
    """`PlainBlock` plus its input, projected where widths differ (`ResidualBlock` in Wan's vae.py)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(in_channels, out_channels, dropout)
        self.shortcut = (
            Identity() if in_channels == out_channels else CausalConv3d(in_channels, out_channels, (1, 1, 1))
        )

    def forward(self, x: Tensor, halo: Halo) -> Tensor:  # type: ignore[override]
        return super().forward(x, halo, self.shortcut(x, halo))


class Identity(nn.Identity):
    """The shortcut where widths are the same."""

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
        # PyTorch's fast attention wants channels side by side; otherwise it spells out all pairs of pixels.
        each = rearrange(self.to_qkv(normed, halo), "b (three c) t h w -> three (b t) 1 (h w) c", three=3).contiguous()
        query, key, value = each.unbind()
        attended = attention(query, halo.everywhere(key), halo.everywhere(value))
        return self.proj(rearrange(attended, "(b t) 1 (h w) c -> b c t h w", b=batch, h=height), halo, x)
