"""PSNR, SSIM and LPIPS of a clip's frames.

SSIM (Wang et al. 2004) uses that its 11x11 Gaussian window is separable: 11 shifted additions down and 11 across
replace a convolution with 121 taps. They work on strips of rows that fit into the CPU's cache.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.io.frames import Frames

WINDOW = 11
_GAUSSIAN = [math.exp(-((offset - WINDOW // 2) ** 2) / (2 * 1.5**2)) for offset in range(WINDOW)]
_WEIGHTS = [value / sum(_GAUSSIAN) for value in _GAUSSIAN]
_STRIP_ROWS = 32
_LUMINANCE_FLOOR = (0.01 * 255) ** 2
_CONTRAST_FLOOR = (0.03 * 255) ** 2


def levels(frame: Frames) -> Tensor:
    """Return a frame (h, w, c), full-range uint8 or uint16, as a float32 picture (c, h, w) in [0, 255]."""
    scale = 255 / torch.iinfo(torch.uint8 if frame.dtype.itemsize == 1 else torch.uint16).max
    return torch.from_numpy(frame.astype("float32")).permute(2, 0, 1) * scale


def psnr(a: Tensor, b: Tensor, *, value_range: float) -> float:
    """Return the PSNR in dB of tensors of one shape whose values span `value_range`; infinite if they are equal."""
    error = F.mse_loss(a, b).item()
    return 10 * math.log10(value_range**2 / error) if error else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the mean SSIM over channels and pixels, at most 1, of pictures (c, h, w) of levels in [0, 255].

    Borders are reflected; h and w must be `WINDOW` or more.
    """
    total, height = 0.0, a.shape[1]
    a, b = (F.pad(picture, (WINDOW // 2,) * 4, mode="reflect") for picture in (a, b))
    for top in range(0, height, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS + WINDOW - 1)
        total += _similarities(a[:, rows], b[:, rows]).sum(dtype=torch.float64).item()
    return total / a[:, WINDOW - 1 :, WINDOW - 1 :].numel()


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM of pictures (c, h, w) in every whole window: (c, h - WINDOW + 1, w - WINDOW + 1)."""
    # Variances are differences of means; centering the values keeps these small, and so their rounding errors.
    level_a, level_b = (picture.mean(dim=(1, 2), keepdim=True) for picture in (a, b))
    moments = a.new_empty((4, *a.shape))
    torch.sub(a, level_a, out=moments[0])
    torch.sub(b, level_b, out=moments[1])
    torch.mul(moments[0], moments[0], out=moments[2]).addcmul_(moments[1], moments[1])
    torch.sub(moments[0], moments[1], out=moments[3]).square_()
    mean_a, mean_b, squares, error = _blurred(_blurred(moments, dim=2), dim=3)
    # Wang's two factors, each as 1 minus a term that is 0 where the pictures are equal. In place, since allocating
    # memory would take as long as the arithmetic.
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


@dataclass(frozen=True)
class Score:
    """How close a reconstruction is to its source: one frame, or a mean over frames or clips.

    Attributes:
        psnr: In dB, on RGB; infinite where a frame came back exactly.
        ssim: At most 1, on RGB (Wang et al. 2004, 11x11 Gaussian window); None for frames smaller than that window.
        lpips: 0 or more, lower is closer; None where it was not measured.
    """

    psnr: float
    ssim: float | None
    lpips: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types; JSON has no infinity."""
        return {**vars(self), "psnr": "infinite" if self.psnr == math.inf else self.psnr}


def mean_score(scores: Sequence[Score]) -> Score:
    """Return the unweighted mean of one or more scores; a value is None where any score has None."""
    if not scores:
        raise UserError("There is no score to average; compare at least one frame.")
    means: dict[str, Any] = {}
    for name in vars(scores[0]):
        values = [getattr(score, name) for score in scores]
        means[name] = None if None in values else sum(values) / len(values)
    return Score(**means)


class Metrics:
    """Compares the frames of a clip with their reconstructions, one by one; without `lpips`, leaves LPIPS out."""

    def __init__(self, lpips: LPIPS | None = None) -> None:
        self._lpips = lpips
        self.frames: list[Score] = []  # one for every frame so far

    def add(self, source: Frames, reconstruction: Frames) -> None:
        """Compare a frame (height, width, c), full-range uint8 or uint16, with its reconstruction of the same size."""
        if source.shape != reconstruction.shape:
            raise UserError(
                f"A frame is {source.shape} and its reconstruction {reconstruction.shape}; only equal sizes compare."
            )
        expected, found = levels(source), levels(reconstruction)
        self.frames.append(
            Score(
                psnr=psnr(expected, found, value_range=255),
                ssim=ssim(expected, found) if min(expected.shape[1:]) >= WINDOW else None,
                lpips=None if self._lpips is None else self._lpips.distance(source, reconstruction),
            )
        )

    def score(self) -> Score:
        """Return the means over the frames so far; at least one is needed."""
        return mean_score(self.frames)
