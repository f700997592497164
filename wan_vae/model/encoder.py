"""The encoder: pixels to the moments of the latents' distribution."""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d
from wan_vae.model.level_shortcuts import AverageShortcut
from wan_vae.model.patches import folded
from wan_vae.model.resample import Downsample
from wan_vae.model.stages import Blocks, Head, Middle
from wan_vae.model.steps import Step, reach_of


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
        # Values of the largest tensor that is held for all frames of a pass, per latent pixel: before the first level
        # that halves the frames, they pass a few at a time.
        untimed = next((index for index, level in enumerate(self.levels) if level.temporal), len(self.levels))
        reduced = min(untimed, len(self.levels) - 1)
        self.held = 4 ** (len(self.levels) - 1 - reduced) * config.temporal_compression * widths[untimed]
        self.middle = Middle(widths[-1], config)
        self.head = Head(widths[-1], 2 * config.latent_channels)

    def forward(self, video: Tensor, halo: Halo) -> Tensor:
        return halo.whole(self._summary, halo.local(self.steps(), video))

    def steps(self) -> tuple[Step, ...]:
        """Return what comes before the middle."""
        p = self.patch_size
        values = -(-self.conv_in.out_channels // p**2)
        return (
            Step(self._features, reach=p * reach_of(self.conv_in), values=values, reduces=p),
            *(level.step() for level in cast(Iterable[EncoderLevel], self.levels)),
        )

    def _features(self, video: Tensor, halo: Halo) -> Tensor:
        return self.conv_in(folded(video, self.patch_size, halo.workspace), halo)

    def _summary(self, x: Tensor, halo: Halo) -> Tensor:
        return self.head(self.middle(x, halo), halo)


class EncoderLevel(nn.Module):
    """Blocks at one resolution, then the step down to the next; Wan2.2 adds a shortcut around both."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, index: int) -> None:
        super().__init__()
        last = index == len(config.width_multipliers) - 1
        self.out_channels = out_channels
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

    def step(self) -> Step:
        """Describe this level."""
        return Step(
            self,
            reach=reach_of(self),
            values=self.out_channels,
            reduces=1 if self.downsample is None else 2,
            temporal=self.temporal,
        )
