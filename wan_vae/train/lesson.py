"""One pass of training: a clip through the VAE, or encoder and decoder each taught the same code."""

from torch import Tensor, nn

from wan_vae.model.halo import Halo
from wan_vae.posterior import Posterior
from wan_vae.vae import WanVAE


class Lesson(nn.Module):
    """What a training step runs: one module, so that it can be compiled and spread over processes as a whole."""

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor, code: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """Reconstruct a clip.

        Args:
            video: (B, 3, T, H, W) in [-1, 1].
            code: Raw latents (B, z, t, h, w) to decode, blurred by the posterior's own noise, instead of a sample of
                the posterior.

        Returns:
            The reconstruction (B, 3, T, H, W), not clamped, and the posterior of the raw latents.
        """
        if code is None:
            return self.vae(video, sample=True)
        posterior = Posterior.from_moments(self.vae.moments(video, Halo()))
        noise = posterior.sample() - posterior.mean
        return self.vae.pixels(code + noise, Halo()), posterior
