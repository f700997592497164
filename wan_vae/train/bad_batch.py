"""Batches whose loss or gradient is not a number: found before they can spoil a weight, and kept to be looked at."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.files import written_beside
from wan_vae.train.data import TrainingBatch


class NotANumberError(ArithmeticError):
    """A loss or the length of a gradient is infinite or NaN; the message names it."""


def check_numbers(values: Mapping[str, Tensor]) -> None:
    """Look at named scalars.

    Raises:
        NotANumberError: One of them is infinite or NaN.
    """
    # All at once, for each look waits for the device.
    if not torch.isfinite(torch.stack(list(values.values()))).all():
        found = {name: value.item() for name, value in values.items() if not torch.isfinite(value)}
        raise NotANumberError(", ".join(f"{name} is {value}" for name, value in found.items()))


def keep_batch(path: Path, batch: TrainingBatch) -> None:
    """Write a batch to a safetensors file, and where its clips came from to the file's metadata."""
    with written_beside(path) as beside:
        save_file({"video": batch.video}, beside, {"origins": "\n".join(batch.origins)})
