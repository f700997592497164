"""Where training sets out from: random weights that learn fast, a checkpoint, or a run's own state."""

from typing import Any

import torch
from torch import nn

from wan_vae.config import VAEConfig
from wan_vae.model.blocks import ResidualBlock
from wan_vae.model.residual_blocks import PreActivationBlock
from wan_vae.train.recipe import Recipe
from wan_vae.vae import WanVAE

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
        ease_start(vae)
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
def ease_start(vae: WanVAE) -> None:
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
