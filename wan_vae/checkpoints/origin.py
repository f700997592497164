"""The checkpoint that a model was loaded from, and whether the model's weights are still its own."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan_vae.checkpoints.files import Checkpoint, load_checkpoint

_SAMPLE = 256  # values of a weight


class _FileVersion(NamedTuple):
    """A file, with what changes when it is written."""

    path: Path
    size: int  # in bytes
    modified: int  # in nanoseconds


class Origin:
    """A checkpoint on disk, and the weights of a model as they were when it was loaded from there."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self._path = checkpoint.origin.absolute()
        self._file = _version_of(checkpoint.path.absolute())
        self._versions, self._samples = _versions(model), _samples(model)

    def digest(self, model: nn.Module) -> str | None:
        """Return the checkpoint's digest if neither its file nor a weight of the model has changed, else None."""
        if self._versions != _versions(model):
            return None
        # Of weights that were converted since, as they would be now.
        pairs = zip(self._samples, _samples(model), strict=True)
        if not all(torch.equal(then.to(now.dtype).double(), now.double()) for then, now in pairs):
            return None
        same = self._file.path.is_file() and self._file == _version_of(self._file.path)
        return _digest(self._path, self._file) if same else None


def _version_of(path: Path) -> _FileVersion:
    status = path.stat()
    return _FileVersion(path, status.st_size, status.st_mtime_ns)


@lru_cache  # a caller of encode_file loops over clips
def _digest(origin: Path, version: _FileVersion) -> str:
    return load_checkpoint(origin, notices=False).digest()


def _versions(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Tell the weights from others in their place, and from themselves once they were written to."""
    weights, statistics = model.parameters(), model.buffers()
    versions = [(id(weight), 0 if weight.is_inference() else weight._version) for weight in weights]
    # Converting a model replaces its buffers.
    return *versions, *((0, 0 if buffer.is_inference() else buffer._version) for buffer in statistics)


def _samples(model: nn.Module) -> tuple[Tensor, ...]:
    """Return some values of every weight: writes to `weight.data`, as adapters are merged, change no version."""
    samples = []
    for weight in model.state_dict().values():
        if not weight.is_meta:
            # Not every n-th value, which could be those of one tap alone.
            count = weight.numel()
            places = torch.linspace(0, count - 1, min(count, _SAMPLE), dtype=torch.float64, device="cpu").long()
            samples.append(weight.detach().flatten()[places.to(weight.device)].cpu())
    return tuple(samples)
