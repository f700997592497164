"""How well held-out clips are reconstructed, in figures and in pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wan_vae.metrics import Fidelity
from wan_vae.perceptual import Perceptual
from wan_vae.reconstruction import reconstructed
from wan_vae.vae import WanVAE

STRIP_FRAMES = 4


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        scalars: The mean over clips of `psnr` (dB), `ssim`, and, with a perceptual network, `lpips`.
        strips: For each clip, frames evenly over its length, the source above the reconstruction: uint8 (h, w, 3).
    """

    scalars: dict[str, float]
    strips: dict[str, NDArray[np.uint8]]


@torch.no_grad()
def validate(vae: WanVAE, clips: Iterable[tuple[str, NDArray[np.uint8]]], perceptual: Perceptual | None) -> Validation:
    """Reconstruct clips, arrays (n, height, width, 3), and compare."""
    figures: dict[str, list[float]] = {"psnr": [], "ssim": []}
    strips = {}
    for name, frames in clips:
        height, width = frames.shape[1:3]
        decoded = np.stack([frame for _, frame in reconstructed(vae, [frames], width, height)])
        fidelity = Fidelity()
        fidelity.update(frames, decoded)
        figures["psnr"].append(fidelity.psnr())
        figures["ssim"].append(fidelity.ssim() or 0.0)
        if perceptual is not None:
            pairs = (torch.from_numpy(levels).permute(0, 3, 1, 2) / 127.5 - 1 for levels in (frames, decoded))
            distance = perceptual(*(pair.to(vae.device) for pair in pairs)).mean().item()
            figures.setdefault("lpips", []).append(distance)
        shown = np.unique(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
        strips[name] = np.concatenate([np.concatenate(list(rows[shown]), axis=1) for rows in (frames, decoded)])
    return Validation({name: float(np.mean(values)) for name, values in figures.items()}, strips)
