"""The state of a run on disk: all that is needed to go on as if it had never stopped.

Batches whose loss or gradient is not a number: found before they can spoil a weight, and kept to be looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.io.atomic_output import remove_partial, written_beside
from wan_vae.training.data import TrainingBatch
from wan_vae.training.recipe import Recipe


class NonFiniteError(ArithmeticError):
    """A loss or the length of a gradient is infinite or NaN; the message names it."""


def check_numbers(values: Mapping[str, Tensor]) -> None:
    """Look at named scalars.

    Raises:
        NotANumberError: One of them is infinite or NaN.
    """
    # All at once, for each look waits for the device.
    if not torch.isfinite(torch.stack(list(values.values()))).all():
        found = {name: value.item() for name, value in values.items() if not torch.isfinite(value)}
        raise NonFiniteError(", ".join(f"{name} is {value}" for name, value in found.items()))


def keep_batch(path: Path, batch: TrainingBatch) -> None:
    """Write a batch to a safetensors file, and where its clips came from to the file's metadata."""
    with written_beside(path) as beside:
        save_file({"video": batch.video}, beside, {"origins": "\n".join(batch.origins)})


FILE_NAME = "state.pt"
# How often something is looked at, and where files lie, changes nothing of the weights; how the same is computed,
# nothing but their rounding.
_MAY_DIFFER = {
    "log_every", "validate_every", "checkpoint_every", "validation_clips", "validation_frames",
    "model.compile", "model.gradient_checkpointing", "data.videos", "data.photos", "data.workers", "lpips.backbone",
}  # fmt: skip


def save_state(folder: Path, recipe: Recipe, state: dict[str, Any]) -> None:
    """Replace the run's state in one step; whatever happens, there is a whole one."""
    with written_beside(folder / FILE_NAME) as beside:
        torch.save({"recipe": recipe.model_dump(mode="json"), **state}, beside)


def load_state(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the state of the run in `folder`, None where none has begun.

    Stages that the run has not reached may have changed.

    Raises:
        UserError: The file is damaged, or is that of another recipe; the message names the entry that differs.
    """
    path = folder / FILE_NAME
    remove_partial(folder, path.stem)
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # Through the recipe, so that entries which did not exist then have their defaults.
        then = Recipe.model_validate(state["recipe"])
    except Exception as error:
        # What a damaged file makes the unpickler do is anybody's guess.
        raise UserError(f"{path} is not the state of a training run, or is damaged; name another --out.") from error
    begun = then.stage_at(max(0, int(state["step"]) - 1))[0] + 1
    was, now = (_fixed(one, begun) for one in (then, recipe))
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{folder} holds a run whose recipe has {name} = {was.get(name)!r}, not {now.get(name)!r}; go on with"
                f" that recipe, or name another --out."
            )
    return state


def _fixed(recipe: Recipe, begun: int) -> dict[str, Any]:
    """Return what must not change any more once so many stages have begun, by dotted name."""
    values = recipe.model_dump(mode="json")
    flat = _flat({**values, "stages": values["stages"][:begun]})
    return {name: value for name, value in flat.items() if name not in _MAY_DIFFER}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, (dict, list)):
        return {prefix.removesuffix("."): values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {name: leaf for key, value in items for name, leaf in _flat(value, f"{prefix}{key}.").items()}
