"""The decoder: latents to pixels."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d
from wan_vae.model.level_shortcuts import RepeatShortcut
from wan_vae.model.patches import unfolded
from wan_vae.model.resample import Upsample
from wan_vae.model.stages import Blocks, Head, Middle
from wan_vae.model.steps import Step, reach_of


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
        # Values of the largest tensor that is held for all frames of a pass, per latent pixel: after the last level
        # that doubles the frames, they pass a few at a time.
        timed = max((index + 1 for index, level in enumerate(self.levels) if level.temporal), default=0)
        self.held = 4**timed * config.temporal_compression * widths[timed]

    def forward(self, latents: Tensor, halo: Halo) -> Tensor:
        return halo.local(self.steps(), halo.whole(self._features, latents))

    def steps(self) -> tuple[Step, ...]:
        """Return what follows the middle."""
        last = Step(
            self._pixels,
            reach=reach_of(self.head),
            values=max(self.head.conv.in_channels, self.head.conv.out_channels),
            enlarges=self.output_upscale * self.patch_size,
        )
        return (*(level.step() for level in cast(Iterable[DecoderLevel], self.levels)), last)

    def _features(self, latents: Tensor, halo: Halo) -> Tensor:
        return self.middle(self.conv_in(latents, halo), halo)

    def _pixels(self, x: Tensor, halo: Halo) -> Tensor:
        x = self.head(x, halo)
        x = unfolded(x, self.output_upscale, halo.workspace, by_rows=True)
        return unfolded(x, self.patch_size, halo.workspace)


class DecoderLevel(nn.Module):
    """Blocks at one resolution, then the step up to the next; Wan2.2 adds a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, index: int) -> None:
        super().__init__()
        last = index == len(config.width_multipliers) - 1
        self.temporal = not last and config.temporal_downsample[::-1][index]
        self.out_channels = out_channels
        self.upsampled = out_channels if config.level_shortcuts else out_channels // 2
        entering = in_channels if config.level_shortcuts or index == 0 else in_channels // 2
        self.blocks = Blocks(entering, out_channels, config.blocks_per_level + 1, config)
        self.upsample = None if last else Upsample(out_channels, self.upsampled, temporal=self.temporal)
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

    def step(self) -> Step:
        """Describe this level."""
        enlarges = 1 if self.upsample is None else 2
        return Step(
            self,
            reach=reach_of(self),
            values=max(self.out_channels, enlarges**2 * self.upsampled),
            enlarges=enlarges,
            temporal=self.temporal,
        )
