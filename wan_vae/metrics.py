"""How close a reconstruction is to its source, frame by frame, in memory that does not grow with the clip."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from wan_vae.fitting import Frames

SSIM_WINDOW = 11


class Fidelity:
    """The mean over all frames of PSNR, in dB, and of SSIM (Wang et al. 2004, 11x11 Gaussian window), both on RGB.

    PSNR is infinite where a frame is equal to its source; the mean then is, too.
    """

    def __init__(self) -> None:
        self._psnr = 0.0
        self._ssim = 0.0
        self._frames = 0
        self._has_ssim = True

    def update(self, source: Frames, reconstruction: Frames) -> None:
        """Compare arrays (n, height, width, 3), uint8 or uint16, of full range."""
        expected, found = _levels(source), _levels(reconstruction)
        psnr = peak_signal_noise_ratio(found, expected, data_range=255.0, dim=(1, 2, 3), reduction="none")
        self._psnr += psnr.sum().item()
        self._frames += len(source)
        self._has_ssim = min(expected.shape[2:]) >= SSIM_WINDOW
        if self._has_ssim:
            ssim = structural_similarity_index_measure(found, expected, data_range=255.0, reduction="none")
            assert isinstance(ssim, Tensor)
            self._ssim += ssim.sum().item()

    def psnr(self) -> float:
        """Return the mean PSNR in dB."""
        return self._psnr / self._frames

    def ssim(self) -> float | None:
        """Return the mean SSIM, or None for frames smaller than its window."""
        return self._ssim / self._frames if self._has_ssim else None


def _levels(frames: Frames) -> Tensor:
    scale = 255 / torch.iinfo(torch.uint8 if frames.dtype.itemsize == 1 else torch.uint16).max
    return torch.from_numpy(frames.astype("float32")).permute(0, 3, 1, 2) * scale
