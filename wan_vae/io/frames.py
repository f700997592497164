"""Between frames of any number and size, and the tensors that the network takes.

Files always fit: frames are padded by edge replication, on the right, at the bottom and at the end, and what comes back
is cropped to the true size.

Tensors on their way to the device and back, beside what it computes.

On CUDA, copies go through pinned memory on streams of their own, and the host waits for the chunk before the last
alone: while it writes that, the device computes the next. Elsewhere tensors are handed on, moved if need be.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError

T = TypeVar("T")


def to_device(chunks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the host's tensors on a device; on CUDA, each while its copy is still under way.

    What is computed with them by the current stream is computed after the copy.
    """
    if device.type != "cuda":
        yield from (chunk.to(device) for chunk in chunks)
        return
    beside = _stream(device)
    for chunk in chunks:
        with torch.cuda.stream(beside):
            # The pinned memory may be forgotten here: torch gives it to others only when it was copied, just as it does
            # with the device's memory once the recorded stream is done with it.
            moved = chunk.pin_memory().to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(beside)
        moved.record_stream(computing)
        yield moved


def to_host(groups: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield a device's tensors on the host; on CUDA, each group once the next one is asked of the device."""
    if device.type != "cuda":
        yield from (tuple(tensor.cpu() for tensor in group) for group in groups)
        return
    for copies, copied in one_behind(_fetched(groups, device)):
        copied.synchronize()
        yield copies


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one was taken."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.popleft()
    yield from held


def _fetched(
    groups: Iterable[tuple[Tensor, ...]], device: torch.device
) -> Iterator[tuple[tuple[Tensor, ...], torch.cuda.Event]]:
    """Yield copies on the host that are under way, and the event after which they are whole."""
    beside = _stream(device)
    for group in groups:
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            # Into pinned memory: that is where torch puts what it need not wait for.
            copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in group)
        for tensor in group:
            tensor.record_stream(beside)
        yield copies, beside.record_event()


def _stream(device: torch.device) -> torch.cuda.Stream:
    make_stream: Any = torch.cuda.Stream  # untyped in some releases
    return make_stream(device)


Frames = NDArray[np.uint8] | NDArray[np.uint16]


class FramesToTensors:
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
        for levels in to_device(self._levels(), self._device):
            last = levels[-1:]
            yield self._fitted(levels)
        if last is not None:
            missing = -(self.frames - 1) % self._config.temporal_compression
            yield self._fitted(last).expand(-1, -1, missing, -1, -1)

    def _levels(self) -> Iterator[Tensor]:
        for frames in self._chunks:
            self.frames += frames.shape[0]
            # torch has next to no arithmetic for uint16; int16 has room for the same bits.
            yield torch.from_numpy(frames if frames.dtype == np.uint8 else frames.view(np.int16))

    def _fitted(self, levels: Tensor) -> Tensor:
        deep = levels.dtype == torch.int16
        values = levels.to(torch.int32).bitwise_and_(0xFFFF) if deep else levels
        video = values.permute(0, 3, 1, 2).to(torch.float32) * (2 / (0xFFFF if deep else 0xFF)) - 1
        multiple = self._config.spatial_compression
        right, below = -video.shape[3] % multiple, -video.shape[2] % multiple
        if right or below:
            video = F.pad(video, (0, right, 0, below), mode="replicate")
        return video.transpose(0, 1).unsqueeze(0)


def tensors_to_frames(
    videos: Iterable[Tensor], width: int, height: int, device: torch.device
) -> Iterator[NDArray[np.uint8]]:
    """Crop the videos (1, 3, n, H, W) in [-1, 1] of a device and round them to uint8 RGB, (n, height, width, 3).

    Raises:
        UserError: A value is NaN.
    """
    rounded = (_rounded(video[0, :, :, :height, :width]) for video in videos)
    for levels, largest in to_host(rounded, device):
        if largest.isnan():
            raise UserError(f"The network gave NaN for pixels in {largest.dtype}; compute in a wider dtype.")
        yield levels.numpy()


def _rounded(video: Tensor) -> tuple[Tensor, Tensor]:
    """Round (3, n, height, width) to uint8 (n, height, width, 3), and find the largest value, NaN if there is any."""
    levels = ((video.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous(), video.amax()
