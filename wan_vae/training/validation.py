"""Reconstruction quality on held-out clips, and the statistics of the latents over training clips."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wan_vae.evaluation.lpips import LPIPS
from wan_vae.evaluation.metrics import Metrics, Score, mean_score
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.io.frames import Frames, FramesToTensors
from wan_vae.vae import WanVAE

STRIP_FRAMES = 4


@torch.no_grad()
def with_latent_statistics(vae: WanVAE, clips: Iterable[Frames]) -> WanVAE:
    """Return a VAE with the same weights, in eval mode, and the mean and deviation of its raw latents by channel.

    The clips (n, height, width, 3) count equally, regardless of their sizes.
    """
    means, squares = [], []
    for frames in clips:
        normalized = torch.cat(list(vae.eval().encode_stream(FramesToTensors([frames], vae.config, vae.device))), dim=2)
        raw = vae.denormalize(normalized).cpu().double()  # some devices have no float64
        means.append(raw.mean(dim=(0, 2, 3, 4)))
        squares.append(raw.square().mean(dim=(0, 2, 3, 4)))
    mean = torch.stack(means).mean(dim=0)
    std = (torch.stack(squares).mean(dim=0) - mean.square()).clamp(min=1e-12).sqrt()
    mean_values, std_values = (tuple(float(f"{value:.6g}") for value in values.tolist()) for values in (mean, std))
    config = dataclasses.replace(vae.config, latent_mean=mean_values, latent_std=std_values)
    return WanVAE.from_weights(config, vae.state_dict())


class Validation(NamedTuple):
    """Results of a validation."""

    scalars: dict[str, float]  # means over clips: psnr in dB, ssim unless a clip is too small, lpips if measured
    strips: dict[str, NDArray[np.uint8]]  # by clip, up to `STRIP_FRAMES` frames above their reconstructions: (h, w, 3)


@torch.no_grad()
def validate(vae: WanVAE, clips: Iterable[tuple[str, NDArray[np.uint8]]], lpips: LPIPS | None) -> Validation:
    """Reconstruct named clips (n, height, width, 3) and compare them with their sources."""
    scores: list[Score] = []
    strips: dict[str, NDArray[np.uint8]] = {}
    named = Counter[str]()
    for name, frames in clips:
        height, width = frames.shape[1:3]
        shown = set(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
        metrics, columns = Metrics(lpips), []
        for index, (source, decoded) in enumerate(reconstruct_frames(vae, [frames], width, height)):
            metrics.add(source, decoded)
            if index in shown:
                columns.append(np.concatenate([source, decoded]))
        scores.append(metrics.score())
        named[name] += 1
        again = f" ({named[name]})" if named[name] > 1 else ""  # of another folder
        strips[name + again] = np.concatenate(columns, axis=1)
    means = vars(mean_score(scores))
    return Validation({name: value for name, value in means.items() if value is not None}, strips)
