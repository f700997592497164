"""The checkpoint that a model was loaded from, and whether the model's weights are still its own."""

from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from wan_vae.checkpoints.files import Checkpoint, load_checkpoint
from wan_vae.io.safetensors_file import Version, version_at

_SAMPLE = 256  # values of a weight


_Files: TypeAlias = frozenset[tuple[Path, Version]]
"""Files, with what changes when they are written."""


class Origin:
    """A checkpoint on disk, and the weights of a model as they were when it was loaded from there."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self._path = checkpoint.origin.absolute()
        self._files: _Files = frozenset((path.absolute(), found) for path, found in checkpoint.versions.items())
        self._versions, self._samples = _versions(model), _samples(model)

    def digest(self, model: nn.Module) -> str | None:
        """Return the checkpoint's digest if neither its file nor a weight of the model has changed, else None."""
        same = all(path.is_file() and found == version_at(path) for path, found in self._files)
        return _digest(self._path, self._files) if same and self.holds(model) else None

    def holds(self, model: nn.Module) -> bool:
        """Whether no weight of the model has changed since it was loaded."""
        if self._versions != _versions(model):
            return False
        # Of weights that were converted since, as they would be now.
        pairs = zip(self._samples, _samples(model), strict=True)
        return all(torch.equal(then.to(now.dtype).double(), now.double()) for then, now in pairs)

    def of(self, model: nn.Module) -> "Origin":
        """Return the origin of a model with equal weights, such as a copy."""
        found = copy(self)
        found._versions = _versions(model)
        return found


@lru_cache  # a caller of encode_file loops over clips
def _digest(origin: Path, files: _Files) -> str:
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
