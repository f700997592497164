"""Principal components of clips, the best linear latents there are: a target that starts encoder and decoder off.

An autoencoder that begins from random weights learns slowly at first, since each half waits for the other. Taught a
fixed code, both learn at once, and what they learn is near linear.
"""

from collections.abc import Iterable

import torch
from einops import rearrange
from torch import Tensor, nn

from wan_vae.config import VAEConfig


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
