"""The distribution of the latents that the encoder describes.

The mean and the standard deviation of latents by channel, between raw latents and final ones.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.config import VAEConfig


@dataclass(frozen=True)
class Posterior:
    """A diagonal normal distribution over raw latents (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114).

    Attributes:
        mean: (B, z, t, h, w).
        logvar: (B, z, t, h, w), the logarithm of the variance, clamped to [-30, 20].
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Posterior":
        """Split the encoder's output (B, 2z, t, h, w) in mean and log-variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def mode(self) -> Tensor:
        """Return the most likely raw latents, the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw raw latents; differentiable in mean and log-variance."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Return the Kullback-Leibler divergence from a standard normal, summed over each clip's latents: (B,)."""
        wide = torch.promote_types(self.mean.dtype, torch.float32)  # a sum of thousands of terms
        mean, logvar = self.mean.to(wide), self.logvar.to(wide)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


class LatentStatistics(NamedTuple):
    """What raw latents were measured to be, by channel (1, z, 1, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, config: VAEConfig, dtype: torch.dtype, device: torch.device) -> "LatentStatistics":
        """Return those of a model, in a dtype but at least float32: they have five digits, bfloat16 three."""
        wide = torch.promote_types(dtype, torch.float32)
        return cls(
            *(
                torch.tensor(values, dtype=wide, device=device).view(1, -1, 1, 1, 1)
                for values in (config.latent_mean, config.latent_std)
            )
        )

    def normalized(self, raw: Tensor) -> Tensor:
        """Raw latents (B, z, t, h, w) -> final latents."""
        return ((raw - self.mean) / self.std).to(raw.dtype)

    def denormalized(self, final: Tensor) -> Tensor:
        """Final latents (B, z, t, h, w) -> raw latents."""
        return (final * self.std + self.mean).to(final.dtype)
