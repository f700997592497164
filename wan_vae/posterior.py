"""The distribution of the latents that the encoder describes."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
