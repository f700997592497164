from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.benchmark.records import make_job
from wan_vae.benchmark.job import smooth_noise, write_inputs
from wan_vae.config import load_config


def test_they_fit_the_model_and_are_the_same_each_time(tmp_path: Path) -> None:
    config = load_config("tiny")
    shapes = [write_inputs(make_job(width=64, height=48, frames=9), config, tmp_path / name) for name in ("a", "b")]
    assert shapes[0] == {"video": (1, 3, 9, 48, 64), "latents": (1, 16, 3, 6, 8)}
    first, second = (load_file(tmp_path / name) for name in ("a", "b"))
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == shapes[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["video"].abs().max() <= 1
    assert first["video"].std() > 0.2


def test_they_are_smooth() -> None:
    noise = smooth_noise((2, 9, 64, 64), torch.Generator().manual_seed(0))
    assert noise.mean().abs() < 1e-5
    assert abs(noise.square().mean() - 1) < 1e-5
    assert (noise[..., 1:] - noise[..., :-1]).std() < 0.5


def test_a_single_value_is_possible() -> None:
    assert smooth_noise((2, 1, 1, 1), torch.Generator()).shape == (1, 2, 1, 1, 1)
