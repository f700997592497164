"""What a page shows of latents: each channel as a picture, and the distribution of its values."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RANGE = 3.0
"""Pictures are black at minus this and white at this; normalized latents have a standard deviation of about 1."""

HISTOGRAM_RANGE = 5.0
_BINS = 50
_LARGEST_CELL = 160  # pixels


@dataclass(frozen=True)
class ChannelStatistics:
    """The values of one channel: mean, standard deviation, and counts; the outer two hold all that is beyond."""

    mean: float
    std: float
    counts: list[int]


class LatentSummary:
    """Takes normalized latents chunk by chunk; memory does not grow with their number.

    Attributes:
        channels: z.
        columns, rows: Arrangement of the channels in a picture.
        cell: Width and height of a channel in it, in pixels.
    """

    def __init__(self, channels: int, width: int, height: int, most_pixels: float) -> None:
        """Start for latents of this size, whose pictures have at most so many pixels."""
        self.channels = channels
        self.columns = math.ceil(math.sqrt(channels))
        self.rows = math.ceil(channels / self.columns)
        scale = min(1.0, _LARGEST_CELL / max(width, height), math.sqrt(most_pixels / (channels * width * height)))
        self.cell = max(1, round(width * scale)), max(1, round(height * scale))
        self._counts = torch.zeros(channels * _BINS, dtype=torch.int64)
        self._sums = torch.zeros(2, channels, dtype=torch.float64)  # of values and of their squares
        self._values = 0  # of a channel

    def add(self, latents: Tensor) -> None:
        """Count the values of latents (1, z, n, h, w) on the CPU."""
        values = latents[0].flatten(1).to(torch.float64)
        self._sums += torch.stack([values.sum(dim=1), values.square().sum(dim=1)])
        self._values += values.shape[1]
        places = ((values / HISTOGRAM_RANGE + 1) * (_BINS / 2)).floor().nan_to_num().clamp(0, _BINS - 1).long()
        places += _BINS * torch.arange(self.channels)[:, None]
        self._counts += torch.bincount(places.flatten(), minlength=self.channels * _BINS)

    def picture(self, latent: Tensor) -> NDArray[np.uint8]:
        """Return the channels (z, h, w) of one latent frame as one gray picture (rows * h, columns * w)."""
        channels, height, width = latent.shape
        levels = ((latent.to(torch.float32) / RANGE + 1) * 127.5).round().nan_to_num().clamp(0, 255).to(torch.uint8)
        grid = torch.zeros(self.rows * self.columns, height, width, dtype=torch.uint8)
        grid[:channels] = levels
        picture = grid.view(self.rows, self.columns, height, width).permute(0, 2, 1, 3)
        return picture.reshape(self.rows * height, self.columns * width).numpy()

    def statistics(self) -> list[ChannelStatistics]:
        """Return those of every channel of all latents so far; at least one is needed."""
        means, squares = self._sums / self._values
        stds = (squares - means.square()).clamp(min=0).sqrt()
        counts = self._counts.view(self.channels, _BINS).tolist()
        return [ChannelStatistics(*row) for row in zip(means.tolist(), stds.tolist(), counts, strict=True)]
