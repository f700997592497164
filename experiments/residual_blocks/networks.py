"""The networks that are compared: identical but for their blocks, their depth and their width."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from experiments.residual_blocks.settings import Frozen, Kind, NetworkSection, TrainingSection
from wan_vae.benchmark.measure import count_work
from wan_vae.config import VAEConfig
from wan_vae.model.blocks import Head, residual_block
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, remove_past

UNIT = 6  # layers: three blocks of two convolutions, two bottlenecks of three, one dense block of five and a transition
FIXED_LAYERS = 3  # of `Autoencoder`: the encoder, the stem and the head
_BLOCKS_PER_UNIT: dict[Kind, int] = {"wan": 3, "plain": 3, "resnet": 3, "preact": 3, "bottleneck": 2, "dense": 1}


class Network(Frozen):
    """One architecture.

    Attributes:
        kind: Of the blocks.
        units: Depth, in units of `UNIT` layers, so that networks of all kinds have equally many.
        width: Channels between the blocks.
        common: What it shares with all others; its widths do not matter here.
    """

    kind: Kind
    units: int
    width: int
    common: NetworkSection

    @property
    def layers(self) -> int:
        """Convolutions from the picture in to the picture out."""
        return FIXED_LAYERS + UNIT * self.units

    def blocks(self) -> nn.ModuleList:
        """Return its residual blocks for single pictures, without what is before and after them."""
        latents = self.common.latent_channels
        config = VAEConfig(
            latent_channels=latents,
            encoder_width=self.width,
            decoder_width=self.width,
            width_multipliers=(1,),
            blocks_per_level=1,
            temporal_downsample=(),
            level_shortcuts=False,
            patch_size=1,
            output_upscale=1,
            dropout=0.0,
            block=self.kind,
            latent_mean=(0.0,) * latents,
            latent_std=(1.0,) * latents,
            bottleneck_ratio=self.common.bottleneck_ratio,
            dense_growth=self.common.dense_growth,
            dense_layers=UNIT - 1,
        )
        count = self.units * _BLOCKS_PER_UNIT[self.kind]
        blocks = nn.ModuleList(residual_block(self.width, self.width, config) for _ in range(count))
        remove_past(blocks)
        return blocks


class Autoencoder(nn.Module):
    """A linear encoder of patches and a decoder of any depth: (B, 3, 1, H, W) -> the same shape.

    Wan's VAE cannot have fewer than ten layers; this can, with blocks of every kind.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._patch = network.common.patch
        latents, kernel = network.common.latent_channels, (1, self._patch, self._patch)
        self.encoder = nn.Conv3d(3, latents, kernel, stride=kernel)
        self.stem = CausalConv3d(latents, network.width, (1, 1, 1))
        self.blocks = network.blocks()
        self.head = Head(network.width, 3 * self._patch**2)
        self.head.conv = CausalConv3d(network.width, 3 * self._patch**2, (1, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        x = through(self.blocks, self.stem(self.encoder(video), Halo()))
        patches = self.head(x, Halo()).transpose(1, 2)
        return nn.functional.pixel_shuffle(patches, self._patch).transpose(1, 2)


def through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """Run blocks one after the other on pictures (B, C, 1, H, W)."""
    for block in blocks:
        x = block(x, Halo())
    return x


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: Trained values.
        multiply_adds: Of convolutions, to reconstruct one training picture, zero padding included.
    """

    parameters: int
    multiply_adds: int


@cache
def cost(network: Network, training: TrainingSection) -> Cost:
    """Count what one training picture costs."""
    with torch.device("meta"):
        model = Autoencoder(network)
        picture = torch.zeros(1, 3, 1, training.crop, training.crop)
    flops = count_work(lambda: model(picture)).flops
    return Cost(sum(parameter.numel() for parameter in model.parameters()), flops // 2)
