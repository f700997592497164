"""How well held-out clips are reconstructed, in figures and in pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wan_vae.metrics import Fidelity, mean_score
from wan_vae.perceptual import Perceptual
from wan_vae.reconstruction import reconstructed
from wan_vae.vae import WanVAE

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
def validate(vae: WanVAE, clips: Iterable[tuple[str, NDArray[np.uint8]]], perceptual: Perceptual | None) -> Validation:
    """Reconstruct clips, arrays (n, height, width, 3), and compare."""
    scores, strips = [], {}
    for name, frames in clips:
        height, width = frames.shape[1:3]
        shown = set(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
        fidelity, columns = Fidelity(perceptual), []
        for index, (source, decoded) in enumerate(reconstructed(vae, [frames], width, height)):
            fidelity.add(source, decoded)
            if index in shown:
                columns.append(np.concatenate([source, decoded]))
        scores.append(fidelity.score())
        strips[name] = np.concatenate(columns, axis=1)
    means = vars(mean_score(scores))
    return Validation({name: value for name, value in means.items() if value is not None}, strips)
