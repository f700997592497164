"""The decoder: latents to pixels."""

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d
from wan_vae.model.level_shortcuts import RepeatShortcut
from wan_vae.model.resample import Upsample
from wan_vae.model.stages import Blocks, Head, Middle


class Decoder(nn.Module):
    """(B, z, t, h, w) -> (B, 3, T, H, W), not clamped (`Decoder3d` in Wan's vae.py and vae2_2.py)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.output_upscale = config.output_upscale
        multipliers = config.width_multipliers[::-1]
        widths = [config.decoder_width * multiplier for multiplier in (multipliers[0], *multipliers)]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.middle = Middle(widths[0], config)
        self.levels = nn.ModuleList(
            DecoderLevel(widths[index], widths[index + 1], config, index) for index in range(len(multipliers))
        )
        self.head = Head(widths[-1], config.output_channels)
        # How many levels come before the first that neither doubles the frames nor has one to follow that does.
        self.timed = max((index + 1 for index, level in enumerate(self.levels) if level.temporal), default=0)
        # Values of the largest tensor that is held for all frames of a pass, per latent pixel.
        self.held = 4**self.timed * config.temporal_compression * widths[self.timed]

    def forward(self, latents: Tensor, halo: Halo) -> Tensor:
        x = self.middle(self.conv_in(latents, halo), halo)
        for level in self.levels[: self.timed]:
            x = level(x, halo)
        # At the full size, where tensors are largest, every frame stays one: they need not all be held at once.
        enlarged = 4 ** (len(self.levels) - 1 - self.timed)
        largest = enlarged * x[:, :1, :1].numel() * self.head.conv.in_channels
        x = torch.cat([self._enlarge(part, halo) for part in halo.portions(x, largest)], dim=2)
        # Two sub-pixel orders: torch.pixel_shuffle's (c, row, column), and Wan2.2's patches (c, column, row).
        s, p = self.output_upscale, self.patch_size
        x = rearrange(x, "b (c q r) t h w -> b c t (h q) (w r)", q=s, r=s)
        return rearrange(x, "b (c r q) t h w -> b c t (h q) (w r)", q=p, r=p)

    def _enlarge(self, x: Tensor, halo: Halo) -> Tensor:
        for level in self.levels[self.timed :]:
            x = level(x, halo)
        return self.head(x, halo)


class DecoderLevel(nn.Module):
    """Blocks at one resolution, then the step up to the next; Wan2.2 adds a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, index: int) -> None:
        super().__init__()
        last = index == len(config.width_multipliers) - 1
        self.temporal = not last and config.temporal_downsample[::-1][index]
        upsampled = out_channels if config.level_shortcuts else out_channels // 2
        entering = in_channels if config.level_shortcuts or index == 0 else in_channels // 2
        self.blocks = Blocks(entering, out_channels, config.blocks_per_level + 1, config)
        self.upsample = None if last else Upsample(out_channels, upsampled, temporal=self.temporal)
        self.shortcut = (
            RepeatShortcut(in_channels, out_channels, time=2 if self.temporal else 1, space=2)
            if config.level_shortcuts and not last
            else None
        )

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        main = self.blocks(x, halo)
        if self.upsample is not None:
            main = self.upsample(main, halo)
        if self.shortcut is not None:
            main = self.shortcut(x, main, halo)
        return main
