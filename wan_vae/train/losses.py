"""What a reconstruction is trained to be close in: pixels, latents, perception, and a discriminator's eyes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.posterior import Posterior


def kl_per_pixel(posterior: Posterior, video: Tensor) -> Tensor:
    """Divergence from a standard normal, summed over the latents, per value of the video (B, 3, T, H, W).

    In this unit a weight of 1e-6 beside a mean absolute error is that of Stable Diffusion's autoencoders (Rombach et
    al. 2022), which sum both.
    """
    return posterior.kl().mean() / video[0].numel()


def random_frames(reconstruction: Tensor, video: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose `count` frames of every clip, the same of both: two (B * count, 3, H, W)."""
    batch, _, length = video.shape[:3]
    chosen = torch.randint(length, (batch, count), device=video.device)
    rows = torch.arange(batch, device=video.device)[:, None]
    return tuple(clip.transpose(1, 2)[rows, chosen].flatten(0, 1) for clip in (reconstruction, video))  # type: ignore[return-value]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator's scores (Lim and Ye 2017): real above 1, fake below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The other side of the hinge loss: the reconstruction's score, to be raised."""
    return -fake.mean()
