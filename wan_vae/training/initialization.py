"""The weights that training starts from, and PCA targets for the first steps from random weights.

From random weights, encoder and decoder learn slowly at first because each depends on the other. With the PCA of the
data as a fixed target for the encoder and a fixed input of the decoder, both learn at once.
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

BIAS_SPREAD = 0.7
FIRST_LOG_VARIANCE = -6.0


class PCATargets(nn.Module):
    """(B, 3, T, H, W) in [-1, 1] -> PCA coefficients (B, z, t, h, w) of the patches that latent pixels stand for.

    The first frame is repeated to fill its patch, for it has a latent frame to itself. One scale for all components
    makes their mean square 1, so that distances are proportional to distances in pixels.
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
        """Compute mean and components over videos, in memory that does not grow with their number."""
        size = len(self.mean)
        count, total, products = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
        for video in videos:
            patches = self._patches(video).flatten(0, 3).double()
            count += len(patches)
            total += patches.sum(dim=0)
            products += patches.T @ patches
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        kept = len(self.components)
        scale = variances[-kept:].mean().clamp(min=1e-12).sqrt()  # constant videos have no variance
        self.mean.copy_(mean)
        self.components.copy_(vectors[:, -kept:].flip(1).T / scale)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        return torch.einsum("bthwp,zp->bzthw", self._patches(video) - self.mean, self.components)

    def _patches(self, video: Tensor) -> Tensor:
        repeated = video[:, :, :1].expand(-1, -1, self._time, -1, -1)
        frames = torch.cat([repeated, video[:, :, 1:]], dim=2)
        pattern = "b c (t f) (h p) (w q) -> b t h w (c f p q)"
        return rearrange(frames, pattern, f=self._time, p=self._space, q=self._space)


def initial_vae(recipe: Recipe, state: dict[str, Any] | None, device: torch.device) -> WanVAE:
    """Return the VAE to train, in which only the weights that the recipe trains require gradients.

    Of the `state` of a run to resume only the architecture is used; the caller loads the weights.

    Raises:
        UserError: The preset or checkpoint cannot be read, or the recipe's sizes do not fit the architecture.
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
        if isinstance(module, nn.Conv3d):  # the fastest layout of convolutions on CPU and GPU
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae.to(device)


def set_training_mode(vae: WanVAE, recipe: Recipe) -> None:
    """Set training mode, except in a frozen encoder, whose batch norms must not update their statistics."""
    vae.train()
    if recipe.model.trainable == "decoder":
        vae.encoder.eval()


@torch.no_grad()
def init_for_training(vae: WanVAE) -> None:
    """Change a VAE's random weights so that it learns faster in its first steps.

    Residual branches start at zero (as in Goyal et al. 2017, section 5.1). The biases of the first convolutions get
    the spread of their outputs: RMSNorm divides by a pixel's norm, so brightness is lost unless some channels do not
    depend on it. The posterior starts narrow, so that its noise does not hide the latents.
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
