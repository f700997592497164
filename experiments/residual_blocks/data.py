"""Pictures for the ablation, cut out of scikit-image's own photos, which need no download."""

import hashlib
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiments.residual_blocks.settings import PhotoSection, TrainingSection
from wan_vae.errors import UserError

_VALIDATION, _SMALL_SET = 1_000_000_007, 1_000_000_009  # no step of a training has these numbers

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
def training_batches(
    photos: PhotoSection, training: TrainingSection, seed: int, set_size: int | None = None
) -> tuple[Tensor, ...]:
    """Return the batches of all steps, (B, 3, 1, crop, crop) in [-1, 1]; each depends on seed and step alone.

    Args:
        photos: Where pictures come from.
        training: How many batches, and their size.
        seed: Of all choices.
        set_size: Batches are drawn from so many pictures; without it, every picture is new.
    """
    generators = [np.random.default_rng((seed, step)) for step in range(training.steps)]
    if set_size is None:
        return tuple(_training_pictures(photos, training, training.batch, random) for random in generators)
    pictures = _training_pictures(photos, training, set_size, np.random.default_rng((seed, _SMALL_SET)))
    return tuple(pictures[random.integers(set_size, size=training.batch)] for random in generators)


def _training_pictures(
    photos: PhotoSection, training: TrainingSection, count: int, random: np.random.Generator
) -> Tensor:
    pictures = _cut_out(photos.training, photos.short_side, training, count, random)
    # A handful of photos has a handful of colors, which a network would learn by heart.
    gain = random.uniform(LEAST_GAIN, 1, (count, 3)) * random.choice((-1, 1), (count, 1))
    offset = random.uniform(-1, 1, gain.shape) * (1 - abs(gain))
    gain, offset = (torch.from_numpy(values).float()[..., None, None, None] for values in (gain, offset))
    return gain * pictures + offset


@cache
def validation_pictures(photos: PhotoSection, training: TrainingSection) -> Tensor:
    """Return pictures of the held-out photos, the same for all seeds: (B, 3, 1, crop, crop) in [-1, 1]."""
    random = np.random.default_rng(_VALIDATION)
    return _cut_out(photos.held_out, photos.short_side, training, training.validation_pictures, random)


def digest_of_pictures(photos: PhotoSection, training: TrainingSection) -> str:
    """Return a digest of the held-out pictures and of a batch, which tells pictures of other code or photos apart."""
    batch = _training_pictures(photos, training, training.batch, np.random.default_rng((0, 0)))
    found = hashlib.sha256()
    for pictures in (validation_pictures(photos, training), batch):
        found.update(pictures.numpy().tobytes())
    return found.hexdigest()[:12]


def _cut_out(
    names: tuple[str, ...], short_side: int, training: TrainingSection, count: int, random: np.random.Generator
) -> Tensor:
    """Cut squares of random place and size, at most half of the photo's short side, and scale them to the crop."""
    crop, pictures = training.crop, []
    for _ in range(count):
        image = Image.fromarray(photo(names[random.integers(len(names))], short_side))
        side = random.uniform(crop, max(crop, min(image.size) / 2))
        left, top = (random.uniform(0, length - side) for length in image.size)
        square = image.resize((crop, crop), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        pictures.append(torch.from_numpy(np.array(square)).permute(2, 0, 1)[:, None])
    return torch.stack(pictures) / 127.5 - 1
