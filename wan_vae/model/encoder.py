"""The encoder: pixels to the moments of the latents' distribution."""

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d
from wan_vae.model.level_shortcuts import AverageShortcut
from wan_vae.model.resample import Downsample
from wan_vae.model.stages import Blocks, Head, Middle


class Encoder(nn.Module):
    """(B, 3, T, H, W) -> (B, 2z, t, h, w) (`Encoder3d` in Wan's vae.py and vae2_2.py)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        widths = [config.encoder_width * multiplier for multiplier in (1, *config.width_multipliers)]
        self.conv_in = CausalConv3d(config.input_channels, widths[0])
        self.levels = nn.ModuleList(
            EncoderLevel(widths[index], widths[index + 1], config, index)
            for index in range(len(config.width_multipliers))
        )
        # How many levels come before the first that halves the frames.
        self.untimed = next((index for index, level in enumerate(self.levels) if level.temporal), len(self.levels))
        # Values of the largest tensor that is held for all frames of a pass, per latent pixel.
        reduced = min(self.untimed, len(self.levels) - 1)
        self.held = 4 ** (len(self.levels) - 1 - reduced) * config.temporal_compression * widths[self.untimed]
        self.middle = Middle(widths[-1], config)
        self.head = Head(widths[-1], 2 * config.latent_channels)

    def forward(self, video: Tensor, halo: Halo) -> Tensor:
        x = rearrange(video, "b c t (h q) (w r) -> b (c r q) t h w", q=self.patch_size, r=self.patch_size)
        # At the full size, where tensors are largest, every frame stays one: they need not all be held at once.
        largest = x[:, :1, :1].numel() * self.conv_in.out_channels
        x = torch.cat([self._reduce(part, halo) for part in halo.portions(x, largest)], dim=2)
        for level in self.levels[self.untimed :]:
            x = level(x, halo)
        return self.head(self.middle(x, halo), halo)

    def _reduce(self, x: Tensor, halo: Halo) -> Tensor:
        x = self.conv_in(x, halo)
        for level in self.levels[: self.untimed]:
            x = level(x, halo)
        return x


class EncoderLevel(nn.Module):
    """Blocks at one resolution, then the step down to the next; Wan2.2 adds a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, index: int) -> None:
        super().__init__()
        last = index == len(config.width_multipliers) - 1
        self.temporal = not last and config.temporal_downsample[index]
        self.blocks = Blocks(in_channels, out_channels, config.blocks_per_level, config)
        self.downsample = None if last else Downsample(out_channels, temporal=self.temporal)
        self.shortcut = (
            AverageShortcut(in_channels, out_channels, time=2 if self.temporal else 1, space=1 if last else 2)
            if config.level_shortcuts
            else None
        )

    def forward(self, x: Tensor, halo: Halo) -> Tensor:
        main = self.blocks(x, halo)
        if self.downsample is not None:
            main = self.downsample(main, halo)
        if self.shortcut is not None:
            main = self.shortcut(x, main, halo)
        return main
