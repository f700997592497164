"""The structural similarity of two pictures (SSIM, Wang et al. 2004).

Its window is separable: eleven shifted additions down and eleven across take the place of a convolution with 121 taps,
strip by strip, so that what they pass over stays in the cache.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
    a, b = a - level_a, b - level_b
    moments = torch.stack([a, b, a * a + b * b, a * b])
    mean_a, mean_b, squares, products = _blurred(_blurred(moments, dim=2), dim=3)
    covariance = products - mean_a * mean_b
    variances = squares - (mean_a * mean_a + mean_b * mean_b)
    mean_a, mean_b = mean_a + level_a, mean_b + level_b
    luminance = (2 * mean_a * mean_b + _LUMINANCE_FLOOR) / (mean_a * mean_a + mean_b * mean_b + _LUMINANCE_FLOOR)
    return luminance * (2 * covariance + _CONTRAST_FLOOR) / (variances + _CONTRAST_FLOOR)


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
