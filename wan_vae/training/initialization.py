"""The weights that training starts from.

From random weights, encoder and decoder learn slowly at first because each depends on the other. With a linear skip
that is the best linear code of the data, both learn at once what that code misses.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from einops import reduce
from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.blocks import PreActivationBlock, ResidualBlock
from wan_vae.training.recipe import Recipe
from wan_vae.vae import WanVAE

BIAS_SPREAD = 0.7
FIRST_LOG_VARIANCE = -6.0


class _Moments:
    """Sums of values and of their products, from which mean and principal components follow."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, blocks: Tensor) -> None:
        """Count in blocks of pixels (..., size)."""
        blocks = blocks.flatten(0, -2).double()
        self.count += len(blocks)
        self.total += blocks.sum(dim=0)
        self.products += blocks.T @ blocks

    def mean(self) -> Tensor:
        return self.total / self.count

    def covariance(self) -> Tensor:
        return self.products / self.count - torch.outer(self.mean(), self.mean())

    def components(self, count: int) -> Tensor:
        """Return the principal components with the largest variances, largest first: (count, size)."""
        return torch.linalg.eigh(self.covariance()).eigenvectors[:, -count:].flip(1).T  # eigh's are ascending


@torch.no_grad()
def fit_linear_skip(vae: WanVAE, videos: Iterable[Tensor]) -> None:
    """Make the linear skip of a model the best linear code of videos: their principal components.

    One scale for all components makes their mean square 1, so that the posterior's noise weighs equally in pixels.
    The basis of a clip's first frames, in which no time passes, is turned and scaled to be close to that of blocks at
    rest (the orthogonal Procrustes problem, Schoenemann 1966): the network then finds the same meaning in both.

    Args:
        vae: The model; nothing of it but its linear skip changes.
        videos: (B, c, T, H, W) each, in [-1, 1].
    """
    encode, decode = vae.encoder.linear_skip, vae.decoder.linear_skip
    assert encode is not None
    assert decode is not None
    first, later = _Moments(encode.first.in_features), _Moments(encode.later.in_features)
    for video in videos:
        first.add(encode.blocks_of(video[:, :, :: encode.frames], 1))
        # A picture alone shows how blocks at rest look.
        rest = video[:, :, 1:] if video.shape[2] > 1 else video.expand(-1, -1, encode.frames, -1, -1)
        later.add(encode.blocks_of(rest, encode.frames))
    count = vae.config.latent_channels
    moving, still = later.components(count), first.components(count)
    # Constant videos have no variance.
    scale = torch.einsum("zp,pq,zq->", moving, later.covariance(), moving).div(count).clamp(min=1e-12).sqrt()
    # (c f p q) -> (c p q), of a block whose frames are alike.
    at_rest = reduce(moving, "z (c f p) -> z (c p)", "sum", c=vae.config.image_channels, f=encode.frames)
    u, spread, v = torch.linalg.svd(at_rest @ first.covariance() @ still.T)
    variance = torch.einsum("zp,pq,zq->", still, first.covariance(), still).clamp(min=1e-12)
    gain = (spread.sum() / variance).clamp(min=1e-6)
    bases = {"first": (first, u @ v @ still, gain / scale), "later": (later, moving, 1 / scale)}
    for name, (moments, basis, factor) in bases.items():
        forward, back = (cast(nn.Linear, skip.get_submodule(name)) for skip in (encode, decode))
        forward.weight.copy_(basis * factor)
        forward.bias.copy_(-factor * basis @ moments.mean())
        back.weight.copy_(basis.T / factor)
        back.bias.copy_(moments.mean())


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
    for coder in (vae.encoder, vae.decoder):
        if coder.linear_skip is not None:  # Adam's steps, alike for all weights, would spoil maps of hundreds of values
            coder.linear_skip.requires_grad_(False)
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
    depend on it. The posterior starts narrow, so that its noise does not hide the latents. With a linear skip, the
    model starts as that skip alone.
    """
    for module in vae.modules():
        if isinstance(module, (ResidualBlock, PreActivationBlock)):
            nn.init.zeros_(module.conv2.weight)
            assert module.conv2.bias is not None
            nn.init.zeros_(module.conv2.bias)
    if vae.config.linear_skip:
        for conv in (vae.quant_conv, vae.post_quant_conv):
            nn.init.dirac_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
    assert vae.quant_conv.bias is not None
    nn.init.constant_(vae.quant_conv.bias[vae.config.latent_channels :], FIRST_LOG_VARIANCE)
    for coder in (vae.encoder, vae.decoder):
        assert coder.conv_in.bias is not None
        nn.init.normal_(coder.conv_in.bias, std=BIAS_SPREAD)
        if coder.linear_skip is not None:
            for value in coder.head.conv.parameters():
                nn.init.zeros_(value)
