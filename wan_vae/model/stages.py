"""The network's local part as a sequence of steps, each of which looks only so far around every pixel.

Encoder and decoder hand it to the halo, which may run it on the whole picture or a part at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from wan_vae.model.halo import Halo


class StageFunction(Protocol):
    """A part of the network: (B, C, T, H, W) -> (B, C', T', H', W')."""

    def __call__(self, x: Tensor, halo: "Halo", /) -> Tensor: ...


@dataclass(frozen=True)
class LocalStage:
    """One step of the local part.

    Attributes:
        run: What it computes.
        reach: How many pixels of its input around the place of a pixel of its output have a say in that.
        values: How many values the largest tensor in it has, per frame and pixel of its input.
        enlarges: By how much it multiplies height and width.
        reduces: By how much it divides height and width.
        temporal: Whether it doubles the frames after the first, if it enlarges, or halves them.
    """

    run: StageFunction
    reach: int
    values: int
    upscale: int = 1
    downscale: int = 1
    temporal: bool = False


def receptive_radius(*modules: nn.Module) -> int:
    """Return how many pixels to each side modules look that follow one another at one resolution."""
    convolutions = (layer for module in modules for layer in module.modules())
    return sum(layer.kernel_size[-1] // 2 for layer in convolutions if isinstance(layer, nn.Conv2d | nn.Conv3d))


def group_by_time(steps: Sequence[LocalStage]) -> list[tuple[LocalStage, ...]]:
    """Group steps that follow one another and leave time as it is; a step that changes it stands alone."""
    runs: list[tuple[LocalStage, ...]] = []
    for temporal, group in groupby(steps, key=lambda step: step.temporal):
        run = tuple(group)
        runs += [(step,) for step in run] if temporal else [run]
    return runs


def peak_channels(steps: Sequence[LocalStage]) -> float:
    """Return how many values the largest tensor in a run of steps has, per frame and pixel of its input."""
    pixels, largest = 1.0, 0.0
    for step in steps:
        largest = max(largest, pixels * step.values)
        pixels *= (step.upscale / step.downscale) ** 2
    return largest


def pixels_per_latent(steps: Sequence[LocalStage], place: int) -> int:
    """Return how many pixels in height, and in width, a latent has before step `place`."""
    return math.prod(step.upscale for step in steps[:place]) * math.prod(step.downscale for step in steps[place:])


def frames_per_latent(steps: Sequence[LocalStage], place: int) -> int:
    """Return how many frames a latent after the clip's first one has before step `place`."""
    doubled = sum(step.temporal and step.upscale > 1 for step in steps[:place])
    to_halve = sum(step.temporal and step.downscale > 1 for step in steps[place:])
    return int(2 ** (doubled + to_halve))
