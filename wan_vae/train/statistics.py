"""The mean and standard deviation of every latent channel over the training data."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from wan_vae.fitting import FittedClip, Frames
from wan_vae.vae import WanVAE

FRAMES_PER_CLIP = 17


@torch.no_grad()
def with_measured_statistics(vae: WanVAE, clips: Iterable[Frames]) -> WanVAE:
    """Return the VAE in eval mode with the statistics of its raw latents, so that final latents are near normal.

    Args:
        vae: A VAE; its weights are shared.
        clips: Arrays (n, height, width, 3); each counts the same, whatever its size.
    """
    means, squares = [], []
    for frames in clips:
        final = torch.cat(list(vae.eval().encode_stream(FittedClip([frames], vae.config, vae.device))), dim=2)
        raw = vae.denormalize(final).cpu().double()  # not every device has float64
        means.append(raw.mean(dim=(0, 2, 3, 4)))
        squares.append(raw.square().mean(dim=(0, 2, 3, 4)))
    mean = torch.stack(means).mean(dim=0)
    std = (torch.stack(squares).mean(dim=0) - mean.square()).clamp(min=1e-12).sqrt()
    config = dataclasses.replace(vae.config, latent_mean=_rounded(mean), latent_std=_rounded(std))
    return WanVAE.from_weights(config, vae.state_dict())


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())
