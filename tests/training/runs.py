"""Training runs small enough for the tests: a model of a few thousand weights, clips of a few frames."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.cli.running import write_clip
from tests.evaluation.test_lpips import ALEXNET
from tests.helpers import small_config
from wan_vae.training import Recipe, Trainer
from wan_vae.training.checkpoint import FILE_NAME

HELD_OUT = "held.mkv"


@dataclass(frozen=True)
class Material:
    """Files that the recipes of tests use.

    Attributes:
        preset: YAML of a small model with dropout.
        videos: Folder of three clips of 40x32 with 9, 7 and 3 frames, and the 6 of `HELD_OUT`.
        photos: Folder of two photos.
        backbone: AlexNet's convolutions, random.
    """

    preset: Path
    videos: Path
    photos: Path
    backbone: Path


def make_material(folder: Path) -> Material:
    """Write the files to a folder."""
    material = Material(folder / "small.yaml", folder / "videos", folder / "photos", folder / "alexnet.safetensors")
    write_preset(material.preset, dropout=0.2, linear_skip=True)
    material.videos.mkdir()
    for name, frames in (("a.mkv", 9), ("b.mkv", 7), ("short.mkv", 3), (HELD_OUT, 6)):
        write_clip(material.videos / name, frames=frames, width=40, height=32, fps=Fraction(25))
    material.photos.mkdir()
    for seed, name in enumerate(("one.png", "two.jpg")):
        levels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((64, 48), Image.Resampling.BICUBIC).save(material.photos / name)
    write_backbone(material.backbone)
    return material


def write_preset(path: Path, **changes: object) -> Path:
    """Write a small config with changes as a preset."""
    path.write_text(yaml.safe_dump({"architecture": small_config(**changes).to_dict()}), encoding="utf-8")
    return path


def write_backbone(path: Path) -> Path:
    """Write random convolutions of AlexNet's shapes."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index, (wide, narrow, side) in ALEXNET.items():
        weight = torch.randn(wide, narrow, side, side, generator=generator) * (2 / (narrow * side**2)) ** 0.5
        tensors |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.zeros(wide)}
    save_file(tensors, path)
    return path


def stage_values(**changes: Any) -> dict[str, Any]:
    """Return a stage in the form of a recipe's YAML."""
    defaults: dict[str, Any] = {
        "name": "clips",
        "steps": 4,
        "batch": 2,
        "lengths": {3: 0.5, 5: 0.5},
        "crop": 16,
        "learning_rate": 0.002,
    }
    return defaults | changes


def recipe_values(material: Material, *stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a recipe in the form of its YAML, with one stage if none is given."""
    data = {
        "videos": str(material.videos),
        "photos": str(material.photos),
        "held_out": [HELD_OUT],
        "video_short_side": 32,
        "photo_short_side": 48,
    }
    defaults: dict[str, Any] = {
        "model": {"preset": str(material.preset)},
        "data": data,
        "stages": list(stages) or [stage_values()],
        "mixed_precision": "no",
        "validation_frames": 5,
    }
    return defaults | changes


def small_recipe(material: Material, *stages: dict[str, Any], **changes: Any) -> Recipe:
    """Return the recipe of `recipe_values`."""
    return Recipe.model_validate(recipe_values(material, *stages, **changes))


def train(recipe: Recipe, folder: Path, *max_steps: int | None) -> dict[str, Any]:
    """Train with a new trainer for each of `max_steps`, and return the state file's content at the end."""
    for last in max_steps or (None,):
        Trainer(recipe, folder).run(last)
    return read_state(folder)


@contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Give accelerate fresh global state, on the CPU, where results are deterministic to the bit."""
    with mock.patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state of the run in a folder."""
    return torch.load(folder / FILE_NAME, weights_only=True)


def assert_same(ours: Any, theirs: Any, *, relative: float = 0, absolute: float = 0) -> None:
    """Check that two states agree in every tensor and number: to the bit, or to tolerances."""
    one, other = dict(_leaves(ours)), dict(_leaves(theirs))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                value, other[name], rtol=relative, atol=absolute, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert value == other[name], name


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{name}.{key}")
    else:
        yield name, value
