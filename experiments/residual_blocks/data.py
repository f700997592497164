"""Clips for the ablation: scikit-image's own photos, which need no download, under a moving virtual camera."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiments.residual_blocks.settings import PhotoSection, TrainingSection
from wan_vae.errors import UserError
from wan_vae.training.data import ken_burns

_VALIDATION = 1_000_000_007  # no step of a training has this number

LEAST_GAIN = 0.3


@cache
def photo(name: str, short_side: int) -> NDArray[np.uint8]:
    """Return a photo, reduced to a short side in pixels: (height, width, 3); gray ones have three equal channels.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise UserError("The photos come with scikit-image; install it: pip install 'wan-vae[lab]'.") from error
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    scale = min(1.0, short_side / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


@cache
def training_batches(photos: PhotoSection, training: TrainingSection, seed: int) -> tuple[Tensor, ...]:
    """Return the batches of all steps, (B, 3, T, crop, crop) in [-1, 1]; each depends on seed and step alone."""
    return tuple(
        _training_batch(photos, training, np.random.default_rng((seed, step))) for step in range(training.steps)
    )


def _training_batch(photos: PhotoSection, training: TrainingSection, random: np.random.Generator) -> Tensor:
    clips = _clips(photos.training, photos.short_side, training, training.batch, random)
    # A handful of photos has a handful of colors, which a network would learn by heart.
    gain = random.uniform(LEAST_GAIN, 1, (training.batch, 3)) * random.choice((-1, 1), (training.batch, 1))
    offset = random.uniform(-1, 1, gain.shape) * (1 - abs(gain))
    gain, offset = (torch.from_numpy(values).float()[..., None, None, None] for values in (gain, offset))
    return gain * clips + offset


@cache
def validation_clips(photos: PhotoSection, training: TrainingSection) -> Tensor:
    """Return clips of the held-out photos, the same for all seeds: (B, 3, T, crop, crop) in [-1, 1]."""
    random = np.random.default_rng(_VALIDATION)
    return _clips(photos.held_out, photos.short_side, training, training.validation_clips, random)


def _clips(
    names: tuple[str, ...], short_side: int, training: TrainingSection, count: int, random: np.random.Generator
) -> Tensor:
    chosen = [photo(names[random.integers(len(names))], short_side) for _ in range(count)]
    paths = [ken_burns(image, training.frames, training.crop, random)[0] for image in chosen]
    return torch.stack(paths) / 127.5 - 1
