"""How well held-out clips are reconstructed, in figures and in pictures.

The mean and standard deviation of every latent channel over the training data.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.evaluation.lpips import LPIPS
from wan_vae.evaluation.metrics import Metrics, mean_score
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.io.frames import Frames, FramesToTensors
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
        final = torch.cat(list(vae.eval().encode_stream(FramesToTensors([frames], vae.config, vae.device))), dim=2)
        raw = vae.denormalize(final).cpu().double()  # not every device has float64
        means.append(raw.mean(dim=(0, 2, 3, 4)))
        squares.append(raw.square().mean(dim=(0, 2, 3, 4)))
    mean = torch.stack(means).mean(dim=0)
    std = (torch.stack(squares).mean(dim=0) - mean.square()).clamp(min=1e-12).sqrt()
    config = dataclasses.replace(vae.config, latent_mean=_rounded(mean), latent_std=_rounded(std))
    return WanVAE.from_weights(config, vae.state_dict())


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())


STRIP_FRAMES = 4


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        scalars: The mean over clips of `psnr` (dB), of `ssim` unless a clip is smaller than its window, and, with a
            perceptual network, of `lpips`.
        strips: For each clip, frames evenly over its length, the source above the reconstruction: uint8 (h, w, 3).
    """

    scalars: dict[str, float]
    strips: dict[str, NDArray[np.uint8]]


@torch.no_grad()
def validate(vae: WanVAE, clips: Iterable[tuple[str, NDArray[np.uint8]]], perceptual: LPIPS | None) -> Validation:
    """Reconstruct clips, arrays (n, height, width, 3), and compare."""
    scores, strips = [], {}
    for name, frames in clips:
        height, width = frames.shape[1:3]
        shown = set(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
        fidelity, columns = Metrics(perceptual), []
        for index, (source, decoded) in enumerate(reconstruct_frames(vae, [frames], width, height)):
            fidelity.add(source, decoded)
            if index in shown:
                columns.append(np.concatenate([source, decoded]))
        scores.append(fidelity.score())
        strips[name] = np.concatenate(columns, axis=1)
    means = vars(mean_score(scores))
    return Validation({name: value for name, value in means.items() if value is not None}, strips)
