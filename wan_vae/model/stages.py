"""The network's local part as a sequence of stages, each of which looks a limited number of pixels around every pixel.

Encoder and decoder hand it to the halo, which may run it on whole pictures or on a part at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from torch import Tensor, nn


class StageFunction(Protocol):
    """A part of the network: (B, C, T, H, W) and a halo -> (B, C', T', H', W')."""

    def __call__(self, x: Tensor, halo: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class LocalStage:
    """One stage of the local part.

    Attributes:
        run: The computation.
        radius: Receptive-field radius, in pixels of the stage's input.
        channels: Channels of the largest tensor inside, counted per frame and pixel of the stage's input.
        upscale: Factor by which height and width grow.
        downscale: Factor by which height and width shrink.
        temporal: Whether the stage doubles (if it upscales) or halves the frames after the first.
    """

    run: StageFunction
    radius: int
    channels: int
    upscale: int = 1
    downscale: int = 1
    temporal: bool = False


def receptive_radius(*modules: nn.Module) -> int:
    """Return the receptive-field radius, in pixels, of modules that run one after the other at one resolution."""
    convolutions = (layer for module in modules for layer in module.modules())
    return sum(layer.kernel_size[-1] // 2 for layer in convolutions if isinstance(layer, nn.Conv2d | nn.Conv3d))


def group_by_time(stages: Sequence[LocalStage]) -> list[tuple[LocalStage, ...]]:
    """Group consecutive stages that keep the number of frames; a temporal stage is a group by itself."""
    groups: list[tuple[LocalStage, ...]] = []
    for temporal, members in groupby(stages, key=lambda stage: stage.temporal):
        group = tuple(members)
        groups += [(stage,) for stage in group] if temporal else [group]
    return groups


def peak_channels(stages: Sequence[LocalStage]) -> float:
    """Return the elements of the largest tensor in consecutive stages, per frame and pixel of their input."""
    pixels, largest = 1.0, 0.0
    for stage in stages:
        largest = max(largest, pixels * stage.channels)
        pixels *= (stage.upscale / stage.downscale) ** 2
    return largest


def pixels_per_latent(stages: Sequence[LocalStage], index: int) -> int:
    """Return the pixels per latent pixel, in height and in width, at the input of stage `index`."""
    return math.prod(stage.upscale for stage in stages[:index]) * math.prod(stage.downscale for stage in stages[index:])


def frames_per_latent(stages: Sequence[LocalStage], index: int) -> int:
    """Return the frames per latent frame after the first, at the input of stage `index`."""
    doubled = sum(stage.temporal and stage.upscale > 1 for stage in stages[:index])
    to_halve = sum(stage.temporal and stage.downscale > 1 for stage in stages[index:])
    return int(2 ** (doubled + to_halve))
