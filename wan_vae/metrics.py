"""How close a reconstruction is to its source, frame by frame, in memory that does not grow with the clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.fitting import Frames
from wan_vae.perceptual import Perceptual
from wan_vae.ssim import WINDOW, ssim


@dataclass(frozen=True)
class Score:
    """How close a reconstruction is to its source, each value a mean over frames or over clips.

    Attributes:
        psnr: In dB, on RGB; infinite where a frame came back exactly.
        ssim: At most 1, on RGB (Wang et al. 2004, 11x11 Gaussian window); None for frames smaller than that window.
        lpips: 0 or more, less is closer; None where it was not measured.
    """

    psnr: float
    ssim: float | None
    lpips: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types; JSON has no infinity."""
        return {**vars(self), "psnr": "infinite" if self.psnr == math.inf else self.psnr}


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the mean over clips, in which each counts the same however long it is; None where any clip has None."""
    psnr = _mean([score.psnr for score in scores])
    assert psnr is not None
    return Score(psnr, _mean([score.ssim for score in scores]), _mean([score.lpips for score in scores]))


class Fidelity:
    """Compares a clip's frames with their reconstructions, one after the other.

    Args:
        perceptual: Measures LPIPS; None to leave that out.
    """

    def __init__(self, perceptual: Perceptual | None = None) -> None:
        self._perceptual = perceptual
        self._psnr = 0.0
        self._ssim: float | None = 0.0
        self._lpips = 0.0
        self._frames = 0

    def add(self, source: Frames, reconstruction: Frames) -> None:
        """Compare a frame (height, width, 3), uint8 or uint16 of full range, with its reconstruction."""
        expected, found = _levels(source), _levels(reconstruction)
        self._psnr += _psnr(expected, found)
        if self._ssim is not None and min(expected.shape[1:]) >= WINDOW:
            self._ssim += ssim(expected, found)
        else:
            self._ssim = None
        if self._perceptual is not None:
            self._lpips += self._perceptual.distance(source, reconstruction)
        self._frames += 1

    def score(self) -> Score:
        """Return the means over the frames so far."""
        return Score(
            self._psnr / self._frames,
            None if self._ssim is None else self._ssim / self._frames,
            None if self._perceptual is None else self._lpips / self._frames,
        )


def _levels(frame: Frames) -> Tensor:
    scale = 255 / torch.iinfo(torch.uint8 if frame.dtype.itemsize == 1 else torch.uint16).max
    return torch.from_numpy(frame.astype("float32")).permute(2, 0, 1) * scale


def _psnr(expected: Tensor, found: Tensor) -> float:
    error = F.mse_loss(found, expected).item()
    return 10 * math.log10(255**2 / error) if error else math.inf


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(values) if len(present) == len(values) else None
