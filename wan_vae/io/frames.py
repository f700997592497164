"""Frames to video tensors and back.

Frames are arrays (n, height, width, c), uint8 or uint16 of full range; videos are tensors (1, c, n, H, W) in [-1, 1].
c is 3 for RGB, and 4 for RGB and straight alpha, whose 0 (transparent) is -1 in a video and whose maximum is 1.
`frames_to_tensor` and `tensor_to_frames` convert in memory. `FramesToTensors` and `tensors_to_frames` convert streams:
they pad to multiples of the compression by replicating edges, crop the result to the true size, and copy.

On CUDA, copies go through pinned memory on their own streams, and the host waits only for the chunk before the last:
while it handles that chunk, the device computes the next one.
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
Frames = NDArray[np.uint8] | NDArray[np.uint16]
CHANNELS = (3, 4)  # of RGB and RGBA


def frames_to_tensor(frames: Frames) -> Tensor:
    """Convert frames to a video on the CPU.

    Args:
        frames: (n, height, width, 3 or 4) RGB or RGBA, uint8 (0 to 255) or uint16 (0 to 65535). Others raise a
            UserError.

    Returns:
        (1, 3 or 4, n, height, width) float32 in [-1, 1].
    """
    if frames.ndim != 4 or frames.shape[3] not in CHANNELS or frames.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"frames are {frames.dtype} of shape {frames.shape}; they must be uint8 or uint16 of shape "
            "(n, height, width, 3), or (n, height, width, 4) with alpha."
        )
    return _scaled(_to_levels(frames)).transpose(0, 1).unsqueeze(0).contiguous()


def tensor_to_frames(video: Tensor) -> NDArray[np.uint8]:
    """Round a video to frames. Values outside [-1, 1] are clipped.

    Args:
        video: (1, c, n, height, width) or (c, n, height, width), c 3 or 4, floating point, on any device.

    Returns:
        (n, height, width, c) uint8 RGB or RGBA.

    Raises:
        UserError: The tensor has another shape or dtype, or holds NaN.
    """
    levels, largest = _rounded(single_clip(video))
    if largest.isnan():
        raise UserError("the video holds NaN; its values must be numbers from -1 to 1.")
    return levels.cpu().numpy()


def single_clip(video: Tensor) -> Tensor:
    """Return (1, c, n, h, w) or (c, n, h, w), c 3 or 4, as the latter; a UserError if it is empty or something else."""
    clip = video[0] if video.ndim == 5 and video.shape[0] == 1 else video
    if clip.ndim != 4 or clip.shape[0] not in CHANNELS or clip.numel() == 0 or not clip.is_floating_point():
        raise UserError(
            f"the video is {video.dtype} of shape {tuple(video.shape)}; it must be one clip of floating point, "
            "(1, 3, n, height, width) or (3, n, height, width), with 4 for 3 if it has alpha."
        )
    return clip


class FramesToTensors:
    """Iterable over frames as the network of `config` takes them: (1, 3 or 4, n, H, W) in [-1, 1] on `device`, padded.

    Attributes:
        frames: Number of frames taken from `chunks` so far, without padding.
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
            yield self._padded(levels)
        if last is not None:
            missing = -(self.frames - 1) % self._config.temporal_compression
            yield self._padded(last).expand(-1, -1, missing, -1, -1)

    def _levels(self) -> Iterator[Tensor]:
        for frames in self._chunks:
            self.frames += frames.shape[0]
            yield _to_levels(frames)

    def _padded(self, levels: Tensor) -> Tensor:
        video = _scaled(levels)
        multiple = self._config.spatial_compression
        right, below = -video.shape[3] % multiple, -video.shape[2] % multiple
        if right or below:
            video = F.pad(video, (0, right, 0, below), mode="replicate")
        return video.transpose(0, 1).unsqueeze(0)


def tensors_to_frames(
    videos: Iterable[Tensor], width: int, height: int, device: torch.device
) -> Iterator[NDArray[np.uint8]]:
    """Crop and round videos (1, c, n, H, W) to frames (n, height, width, c) on the host; a UserError for NaN."""
    rounded = (_rounded(video[0, :, :, :height, :width]) for video in videos)
    for levels, largest in to_host(rounded, device):
        if largest.isnan():
            raise UserError(f"The network gave NaN for pixels in {largest.dtype}; compute in a wider dtype.")
        yield levels.numpy()


def to_device(chunks: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield host tensors on a device. On CUDA the copy may still be running; the current stream waits for it."""
    if device.type != "cuda":
        for chunk in chunks:
            yield chunk.to(device)
        return
    copying = _stream(device)
    for chunk in chunks:
        with torch.cuda.stream(copying):
            # The pinned buffer may be dropped here: the caching host allocator reuses it only after the copy.
            copy = chunk.pin_memory().to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        copy.record_stream(computing)
        yield copy


def to_host(groups: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield a device's tensors on the host. On CUDA, each group is yielded after the next one has been launched."""
    if device.type != "cuda":
        for group in groups:
            yield tuple(tensor.cpu() for tensor in group)
        return
    copying = _stream(device)

    def started() -> Iterator[tuple[tuple[Tensor, ...], torch.cuda.Event]]:
        for group in groups:
            copying.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(copying):
                # A non-blocking copy to the CPU goes to pinned memory.
                copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in group)
            for tensor in group:
                tensor.record_stream(copying)
            yield copies, copying.record_event()

    for copies, copied in one_behind(started()):
        copied.synchronize()
        yield copies


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one was taken."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _stream(device: torch.device) -> torch.cuda.Stream:
    make_stream: Any = torch.cuda.Stream  # untyped in some releases
    return make_stream(device)


def _to_levels(frames: Frames) -> Tensor:
    """Return the tensor that shares memory with frames, with uint16 as int16, since torch lacks uint16 arithmetic."""
    levels = np.require(frames, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    return torch.from_numpy(levels if levels.dtype == np.uint8 else levels.view(np.int16))


def _scaled(levels: Tensor) -> Tensor:
    """Scale the result of `_to_levels`, (n, height, width, c), to float32 (n, c, height, width) in [-1, 1]."""
    deep = levels.dtype == torch.int16
    values = levels.to(torch.int32).bitwise_and_(0xFFFF) if deep else levels
    return values.permute(0, 3, 1, 2).to(torch.float32) * (2 / (0xFFFF if deep else 0xFF)) - 1


def _rounded(video: Tensor) -> tuple[Tensor, Tensor]:
    """Round (c, n, height, width) to uint8 (n, height, width, c); also return the maximum, NaN if a value is NaN."""
    levels = ((video.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous(), video.amax()
