"""How close a reconstruction is to its source, frame by frame, in memory that does not grow with the clip.

The structural similarity of two pictures (SSIM, Wang et al. 2004).

Its window is separable: eleven shifted additions down and eleven across take the place of a convolution with 121 taps,
strip by strip, so that what they pass over stays in the cache.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.evaluation.lpips import LPIPS
from wan_vae.io.frames import Frames

WINDOW = 11
_SIGMA = 1.5
_STRIP_ROWS = 32
_RANGE = 255.0
_LUMINANCE_FLOOR = (0.01 * _RANGE) ** 2
_CONTRAST_FLOOR = (0.03 * _RANGE) ** 2


def ssim(a: Tensor, b: Tensor) -> float:
    """Compare pictures (c, h, w) of levels from 0 to 255; borders are reflected; h and w must be `WINDOW` or more.

    Returns:
        The mean over channels and pixels, at most 1.
    """
    total, height = 0.0, a.shape[1]
    a, b = (F.pad(picture, (WINDOW // 2,) * 4, mode="reflect") for picture in (a, b))
    for top in range(0, height, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS + WINDOW - 1)
        total += _similarities(a[:, rows], b[:, rows]).sum(dtype=torch.float64).item()
    return total / a[:, WINDOW - 1 :, WINDOW - 1 :].numel()


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    """Compare pictures (c, h, w) in every whole window: (c, h - WINDOW + 1, w - WINDOW + 1)."""
    # Variances are differences of large means, which lose less to rounding around zero.
    level_a, level_b = (picture.mean(dim=(1, 2), keepdim=True) for picture in (a, b))
    moments = a.new_empty((4, *a.shape))
    torch.sub(a, level_a, out=moments[0])
    torch.sub(b, level_b, out=moments[1])
    torch.mul(moments[0], moments[0], out=moments[2]).addcmul_(moments[1], moments[1])
    torch.sub(moments[0], moments[1], out=moments[3]).square_()
    mean_a, mean_b, squares, error = _blurred(_blurred(moments, dim=2), dim=3)
    # Wang's two factors, each as 1 minus a part that is 0 where pictures are equal. In place, for fresh memory would
    # take as long as the arithmetic.
    difference = mean_a - mean_b
    variances = squares.addcmul_(mean_a, mean_a, value=-1).addcmul_(mean_b, mean_b, value=-1)
    structure = error.addcmul_(difference, difference, value=-1).div_(variances.add_(_CONTRAST_FLOOR))
    energy = mean_a.add_(level_a).square_().add_(mean_b.add_(level_b).square_()).add_(_LUMINANCE_FLOOR)
    luminance = difference.add_(level_a - level_b).square_().div_(energy)
    return luminance.sub_(1).mul_(structure.sub_(1))


def _blurred(x: Tensor, dim: int) -> Tensor:
    length = x.shape[dim] - WINDOW + 1
    blurred = x.narrow(dim, 0, length) * _WEIGHTS[0]
    for offset in range(1, WINDOW):
        blurred.add_(x.narrow(dim, offset, length), alpha=_WEIGHTS[offset])
    return blurred


def _gaussian() -> list[float]:
    values = [math.exp(-((offset - WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for offset in range(WINDOW)]
    return [value / sum(values) for value in values]


_WEIGHTS = _gaussian()


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


class Metrics:
    """Compares a clip's frames with their reconstructions, one after the other.

    Args:
        perceptual: Measures LPIPS; None to leave that out.
    """

    def __init__(self, perceptual: LPIPS | None = None) -> None:
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
