"""What a reconstruction is trained to be close in: pixels, latents, and perception."""

import torch
from torch import Tensor

from wan_vae.posterior import Posterior


def kl_per_value(posterior: Posterior, video: Tensor) -> Tensor:
    """Divergence from a standard normal, summed over the latents, per value of the video (B, 3, T, H, W).

    In this unit a weight of 1e-6 beside a mean absolute error is that of Stable Diffusion's autoencoders (Rombach et
    al. 2022), which sum both.
    """
    return posterior.kl().mean() / video[0].numel()


def random_frames(reconstruction: Tensor, video: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose at most `count` frames of every clip, the same of both: two (B * count, 3, H, W)."""
    batch, _, length = video.shape[:3]
    count = min(count, length)
    chosen = torch.randint(length, (batch, count), device=video.device)
    rows = torch.arange(batch, device=video.device)[:, None]
    return (
        reconstruction.transpose(1, 2)[rows, chosen].flatten(0, 1),
        video.transpose(1, 2)[rows, chosen].flatten(0, 1),
    )
