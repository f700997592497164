"""The state of a run on disk: all that is needed to go on as if it had never stopped."""

import pickle
from pathlib import Path
from typing import Any

import torch

from wan_vae.errors import UserError
from wan_vae.files import written_beside
from wan_vae.train.recipe import Recipe

FILE_NAME = "state.pt"
# How often something is looked at, and where files lie, changes nothing of the weights.
_MAY_DIFFER = {
    "log_every", "validate_every", "checkpoint_every", "validation_clips", "validation_frames",
    "data.videos", "data.photos", "data.workers", "lpips.backbone",
}  # fmt: skip


def save_state(folder: Path, recipe: Recipe, state: dict[str, Any]) -> None:
    """Replace the run's state in one step; whatever happens, there is a whole one."""
    with written_beside(folder / FILE_NAME) as beside:
        torch.save({"recipe": recipe.model_dump(mode="json"), **state}, beside)


def load_state(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the state of the run in `folder`, None where none has begun.

    Raises:
        UserError: The file is damaged, or is that of another recipe; the message names the entry that differs.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        then = _flat(state["recipe"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not the state of a training run, or is damaged; name another --out.") from error
    now = _flat(recipe.model_dump(mode="json"))
    for name in sorted({*then, *now} - _MAY_DIFFER):
        if then.get(name) != now.get(name):
            raise UserError(
                f"{folder} holds a run whose recipe has {name} = {then.get(name)!r}, not {now.get(name)!r}; go on with"
                f" that recipe, or name another --out."
            )
    return state


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, (dict, list)):
        return {prefix.removesuffix("."): values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {name: leaf for key, value in items for name, leaf in _flat(value, f"{prefix}{key}.").items()}
