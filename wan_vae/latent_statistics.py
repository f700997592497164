"""The mean and the standard deviation of latents by channel, between raw latents and final ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.config import VAEConfig


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
