"""The networks that are compared: identical but for their blocks, their depth and, at equal cost, their width."""

from typing import Literal

from experiments.residual_blocks.settings import Frozen, NetworkSection
from wan_vae.config import VAEConfig

Kind = Literal["wan", "resnet", "bottleneck", "preact", "dense", "plain"]


class Network(Frozen):
    """One architecture.

    Attributes:
        kind: Of the blocks.
        blocks_per_level: Of the encoder; the decoder has one more.
        width: Channels of the higher level.
        common: What it shares with all others; its width is the one above.
    """

    kind: Kind
    blocks_per_level: int
    width: int
    common: NetworkSection

    def config(self) -> VAEConfig:
        """Return the VAE's config."""
        latents = self.common.latent_channels
        return VAEConfig(
            latent_channels=latents,
            encoder_width=self.width,
            decoder_width=self.width,
            width_multipliers=(1, 2),
            blocks_per_level=self.blocks_per_level,
            temporal_downsample=(True,),
            level_shortcuts=False,  # they would carry gradients around blocks that have no skip of their own
            patch_size=2,
            output_upscale=1,
            dropout=0.0,
            block=self.kind,
            latent_mean=(0.0,) * latents,
            latent_std=(1.0,) * latents,
            bottleneck_ratio=self.common.bottleneck_ratio,
            dense_growth=max(1, round(self.width * self.common.dense_growth)),
            dense_layers=self.common.dense_layers,
        )
