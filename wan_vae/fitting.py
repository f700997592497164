"""Between frames of any number and size, and the tensors that the network takes.

Files always fit: frames are padded by edge replication, on the right, at the bottom and at the end, and what comes back
is cropped to the true size.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError

Frames = NDArray[np.uint8] | NDArray[np.uint16]


class FittedClip:
    """A clip's frames as chunks that the network takes: (1, 3, n, H, W) in [-1, 1], padded to fit.

    Args:
        chunks: Arrays (n, height, width, 3), uint8 or uint16, RGB of full range.
        config: Of the model that they are to fit.
        device: Where the tensors go.

    Attributes:
        frames: How many true frames were taken from `chunks` so far.
    """

    def __init__(self, chunks: Iterable[Frames], config: VAEConfig, device: torch.device) -> None:
        self._chunks = chunks
        self._config = config
        self._device = device
        self.frames = 0

    def __iter__(self) -> Iterator[Tensor]:
        last = None
        for frames in self._chunks:
            self.frames += frames.shape[0]
            last = frames[-1:]
            yield self._fitted(frames)
        if last is not None:
            missing = -(self.frames - 1) % self._config.temporal_compression
            yield self._fitted(last).expand(-1, -1, missing, -1, -1)

    def _fitted(self, frames: Frames) -> Tensor:
        # torch has next to no arithmetic for uint16.
        values = torch.from_numpy(frames if frames.dtype == np.uint8 else frames.astype(np.int32)).to(self._device)
        video = values.permute(3, 0, 1, 2).to(torch.float32) * (2 / np.iinfo(frames.dtype).max) - 1
        multiple = self._config.spatial_compression
        height, width = video.shape[2:]
        return F.pad(video, (0, -width % multiple, 0, -height % multiple), mode="replicate").unsqueeze(0)


def video_to_frames(video: Tensor, width: int, height: int) -> NDArray[np.uint8]:
    """Crop (1, 3, n, H, W) in [-1, 1] and round it to uint8 RGB, (n, height, width, 3).

    Raises:
        UserError: A value is NaN.
    """
    cropped = video[0, :, :, :height, :width].to(torch.float32)
    if torch.isnan(cropped).any():
        raise UserError(f"The network gave NaN for pixels in {video.dtype}; compute in a wider dtype.")
    levels = ((cropped + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()
