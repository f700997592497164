"""Files that resume or explain a training run: its state, and the batch behind an infinite or NaN loss."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.io.atomic_output import remove_partial, written_beside
from wan_vae.training.data import TrainingBatch
from wan_vae.training.recipe import Recipe

FILE_NAME = "state.pt"
# Entries that may change when a run is resumed: intervals and paths do not affect the weights; how the same values are
# computed affects only their rounding.
_MAY_DIFFER = {
    "log_every", "validate_every", "checkpoint_every", "validation_clips", "validation_frames",
    "model.compile", "model.gradient_checkpointing", "data.videos", "data.photos", "data.workers", "lpips.backbone",
}  # fmt: skip

# What a run that failed at a step needs another of.
_RATES = {"learning_rate", "gradient_clip"}
_LOGGER = logging.getLogger("wan_vae")


class NonFiniteError(ArithmeticError):
    """A loss or a gradient norm is infinite or NaN; the message names it."""


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Raise `NonFiniteError` if any of the named scalar tensors is infinite or NaN."""
    # Stacked, because each read of a value waits for the device.
    if not torch.isfinite(torch.stack(list(values.values()))).all():
        found = {name: value.item() for name, value in values.items() if not torch.isfinite(value)}
        raise NonFiniteError(", ".join(f"{name} is {value}" for name, value in found.items()))


def save_batch(path: Path, batch: TrainingBatch) -> None:
    """Write a batch to a safetensors file, with the origins of its clips in the file's metadata."""
    data = save({"video": batch.video}, {"origins": "\n".join(batch.origins)})
    with written_beside(path) as beside:
        beside.write_bytes(data)  # safetensors has an error of its own for full disks


def save_state(folder: Path, recipe: Recipe, state: dict[str, Any]) -> None:
    """Replace the state file of the run in `folder` atomically."""
    with written_beside(folder / FILE_NAME) as beside, beside.open("wb") as file:
        try:
            torch.save({"recipe": recipe.model_dump(mode="json"), **state}, file)
        except RuntimeError as error:
            # On a full disk torch cannot end the file either, and raises an error of its own about that.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_state(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the state of the run in `folder`, or None if there is none.

    The recipe must be the one that the run began with, except for stages not yet begun, the entries `_MAY_DIFFER`, and
    learning rates and the clipping of gradients, whose change is logged.

    Raises:
        UserError: The file is damaged or belongs to another recipe; the message names the entry that differs.
    """
    path = folder / FILE_NAME
    remove_partial(folder, path.stem)
    if not path.exists():
        return None
    if not path.is_file():  # opening a pipe waits for a writer
        raise UserError(f"{path} is no file, and so not the state of a training run; name another --out.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # Validated, so that entries that did not exist when the state was written get their defaults.
        saved = Recipe.model_validate(state["recipe"])
    except Exception as error:  # the unpickler raises almost anything for a damaged file
        raise UserError(f"{path} is not the state of a training run, or is damaged; name another --out.") from error
    stages_begun = saved.stage_at(max(0, int(state["step"]) - 1))[0] + 1
    was, now = (_fixed_entries(one, stages_begun) for one in (saved, recipe))
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            if name.rpartition(".")[2] in _RATES:
                _LOGGER.warning(
                    f"{folder} goes on with {name} = {now.get(name)!r}, which was {was.get(name)!r} before."
                )
                continue
            raise UserError(
                f"{folder} holds a run whose recipe has {name} = {was.get(name)!r}, not {now.get(name)!r}; go on with"
                f" that recipe, or name another --out."
            )
    return state


def _fixed_entries(recipe: Recipe, stages_begun: int) -> dict[str, Any]:
    """Return the entries that must not change any more, by dotted name."""
    values = recipe.model_dump(mode="json")
    flat = _flatten({**values, "stages": values["stages"][:stages_begun]})
    return {name: value for name, value in flat.items() if name not in _MAY_DIFFER}


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, (dict, list)):
        return {prefix.removesuffix("."): values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {name: leaf for key, value in items for name, leaf in _flatten(value, f"{prefix}{key}.").items()}
