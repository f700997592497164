"""Random weights from which training from scratch sets out fast."""

import torch
from torch import nn

from wan_vae.model.blocks import ResidualBlock
from wan_vae.model.residual_blocks import PreActivationBlock
from wan_vae.vae import WanVAE

BIAS_SPREAD = 0.7
FIRST_LOG_VARIANCE = -6.0


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
