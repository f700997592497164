"""Where training sets out from: random weights that learn fast, a checkpoint, or a run's own state.

Principal components of clips, the best linear latents there are: a target that starts encoder and decoder off.

An autoencoder that begins from random weights learns slowly at first, since each half waits for the other. Taught a
fixed code, both learn at once, and what they learn is near linear.
"""

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.blocks import PreActivationBlock, ResidualBlock
from wan_vae.training.recipe import Recipe
from wan_vae.vae import WanVAE


class PrincipalComponents(nn.Module):
    """(B, 3, T, H, W) in [-1, 1] -> its patches' principal components (B, z, t, h, w).

    A patch is what one latent pixel stands for. The first frame, which a latent frame has for itself, counts as one
    that stands still. All components share one scale, such that their mean square is 1: distances in them are
    distances in pixels.

    Args:
        config: Of the model to teach: its compression and its latent channels.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self._time, self._space = config.temporal_compression, config.spatial_compression
        size = 3 * self._time * self._space**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.zeros(config.latent_channels, size))

    @torch.no_grad()
    def fit(self, videos: Iterable[Tensor]) -> None:
        """Measure mean and components over clips, in memory that does not grow with their number."""
        size = len(self.mean)
        count, total, products = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
        for video in videos:
            patches = self._patches(video).flatten(0, 3).double()
            count += len(patches)
            total += patches.sum(dim=0)
            products += patches.T @ patches
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        # Ascending, so the largest are last. Of clips that never change, all are zero but for rounding errors.
        variances, vectors = torch.linalg.eigh(covariance)
        kept = self.components.shape[0]
        scale = variances[-kept:].mean().clamp(min=1e-12).sqrt()
        self.mean.copy_(mean)
        self.components.copy_(vectors[:, -kept:].flip(1).T / scale)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        return torch.einsum("bthwp,zp->bzthw", self._patches(video) - self.mean, self.components)

    def _patches(self, video: Tensor) -> Tensor:
        still = video[:, :, :1].expand(-1, -1, self._time, -1, -1)
        frames = torch.cat([still, video[:, :, 1:]], dim=2)
        return rearrange(
            frames, "b c (t f) (h p) (w q) -> b t h w (c f p q)", f=self._time, p=self._space, q=self._space
        )


BIAS_SPREAD = 0.7
FIRST_LOG_VARIANCE = -6.0


def starting_point(recipe: Recipe, state: dict[str, Any] | None, device: torch.device) -> WanVAE:
    """Return the VAE to train on `device`, with gradients for what the recipe trains.

    Args:
        recipe: Its preset or checkpoint.
        state: Of a run to go on with, whose architecture then counts; its weights are loaded by whoever has it.
        device: Where it goes.

    Raises:
        UserError: The preset or the checkpoint cannot be read, or the recipe's sizes do not fit it.
    """
    if state is not None:
        vae = WanVAE(VAEConfig.from_dict(state["config"], origin="the run's state"))
    elif recipe.model.checkpoint is not None:
        vae = WanVAE.from_pretrained(recipe.model.checkpoint, dtype=torch.float32)
    else:
        assert recipe.model.preset is not None
        vae = WanVAE.from_config(recipe.model.preset)
        init_for_training(vae)
    recipe.check_fits(vae.config)
    vae.requires_grad_(True)
    if recipe.model.trainable == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae.set_gradient_checkpointing(recipe.model.gradient_checkpointing)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            # The layout in which convolutions are fastest, on a CPU as on a GPU.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae.to(device)


def in_training_mode(vae: WanVAE, recipe: Recipe) -> None:
    """Put in training mode what the recipe trains; batch norms in a frozen encoder must not go on measuring."""
    vae.train()
    if recipe.model.trainable == "decoder":
        vae.encoder.eval()


@torch.no_grad()
def init_for_training(vae: WanVAE) -> None:
    """Change a VAE's random weights so that it learns faster from the first step on.

    Blocks with an identity skip begin as the identity (Goyal et al. 2017, section 5.1, does so with a zero gamma). And
    the first convolutions get biases as large as their outputs: RMSNorm divides by a pixel's length, so how bright a
    pixel is can only be told beside channels that do not depend on it. The posterior starts narrow, so that its noise
    does not drown what little the latents say at first.
    """
    for module in vae.modules():
        if isinstance(module, (ResidualBlock, PreActivationBlock)):
            nn.init.zeros_(module.conv2.weight)
            assert module.conv2.bias is not None
            nn.init.zeros_(module.conv2.bias)
    assert vae.quant_conv.bias is not None
    nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], FIRST_LOG_VARIANCE)
    for coder in (vae.encoder, vae.decoder):
        assert coder.conv_in.bias is not None
        nn.init.normal_(coder.conv_in.bias, std=BIAS_SPREAD)
