"""The whole network: encoder and decoder with the pointwise convolutions between them and the latents."""

from torch import Tensor, nn

from wan_vae.config import VAEConfig
from wan_vae.model.decoder import Decoder
from wan_vae.model.encoder import Encoder
from wan_vae.model.halo import Halo


class Autoencoder(nn.Module):
    """The network of one config (`WanVAE_` in Wan's vae.py): what it computes depends on its arguments alone."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(moments, moments, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def moments(self, video: Tensor, halo: Halo) -> Tensor:
        """(B, 3, T, H, W) -> mean and log-variance of the raw latents, (B, 2z, t, h, w)."""
        return self.quant_conv(self.encoder(video, halo))

    def pixels(self, raw: Tensor, halo: Halo) -> Tensor:
        """Raw latents (B, z, t, h, w) -> (B, 3, T, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(raw), halo)
