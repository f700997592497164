"""Alpha from the command line: two models for one latent, and pictures of a model of RGBA."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.running import run, write_clip
from tests.helpers import random_vae, small_config
from wan_vae import AlphaPair, decode_file
from wan_vae.io import open_clip
from wan_vae.io import write_clip as write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alpha")
    for number, name in enumerate(("color", "alpha")):
        random_vae(small_config(), torch.float32, seed=number).save(folder / f"{name}.safetensors")
    write_clip(folder / "clip.mkv", frames=5, width=16, height=12, fps=Fraction(25))
    return folder


def frames_of(path: Path) -> np.ndarray:
    with open_clip(path, alpha=True) as clip:
        return np.concatenate(list(clip.chunks(8)))


def test_decode_with_a_model_for_alpha_gives_what_the_pair_gives(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    color, alpha, latents = folder / "color.safetensors", folder / "alpha.safetensors", folder / "z.safetensors"
    assert run(capsys, "encode", folder / "clip.mkv", latents, "--checkpoint", color).code == 0
    pair = ("--checkpoint", color, "--alpha-checkpoint", alpha)
    ended = run(capsys, "decode", latents, folder / "both.mkv", *pair, "--lossless", "--dtype", "fp32")
    assert (ended.code, ended.err) == (0, "")
    decode_file(latents, folder / "library.mkv", AlphaPair.from_pretrained(color, alpha), lossless=True)
    assert np.array_equal(frames_of(folder / "both.mkv"), frames_of(folder / "library.mkv"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--preview",), "--preview needs no model, so --alpha-checkpoint has no use"),
        (("--checkpoint-values", "raw"), "--checkpoint-values is for tiny autoencoders, not for --alpha-checkpoint"),
        (("--shards", "2"), "--shards is 2, but --alpha-checkpoint is the work of one process"),
    ],
)
def test_decode_with_a_model_for_alpha_and_an_option_that_excludes_it_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    ended = run(capsys, "decode", "z.safetensors", folder / "x.mkv", "--alpha-checkpoint", "a.safetensors", *options)
    assert ended.code == 2
    assert sentence in ended.err


@pytest.mark.parametrize("option", ["--checkpoint", "--checkpoint-values", "--device", "--dtype", "--memory"])
def test_decode_as_a_preview_with_an_option_for_models_is_refused(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"--checkpoint-values": "raw", "--device": "cpu", "--dtype": "fp32", "--memory": "1GiB"}.get(option, "x")
    ended = run(capsys, "decode", "z.safetensors", folder / "x.mkv", "--preview", option, value)
    assert (ended.code, ended.err) == (
        2,
        f"wan-vae: --preview needs no model, so {option} has no use; leave one of them out.\n",
    )


def test_picture_with_alpha_goes_through_a_model_of_single_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(image_channels=4, images_only=True, level_shortcuts=True, width_multipliers=(1, 1))
    model, latents = folder / "pictures.safetensors", folder / "picture_latents.safetensors"
    random_vae(config, torch.float32).save(model)
    video = torch.rand(1, 4, 1, 13, 17, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(folder / "a.png", video, fps=1)
    assert run(capsys, "encode", folder / "a.png", latents, "--checkpoint", model).code == 0
    assert run(capsys, "decode", latents, folder / "b.png", "--checkpoint", model).code == 0
    assert frames_of(folder / "b.png").shape == (1, 13, 17, 4)
    assert run(capsys, "reconstruct", folder / "a.png", folder / "c.webp", "--checkpoint", model).code == 0
    ended = run(capsys, "encode", folder / "clip.mkv", folder / "no.safetensors", "--checkpoint", model)
    assert ended.code == 2
    assert "has 5 frames, but the model encodes single pictures; select one with --frames 0:1" in ended.err
    assert not (folder / "no.safetensors").exists()
