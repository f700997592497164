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
