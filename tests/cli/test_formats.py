"""`encode`, `decode` and `info` on latents of other programs."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.running import read_clip, run, write_clip
from tests.helpers import random_vae, small_config
from wan_vae.io import open_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with 16 channels of latents."""
    path = tmp_path_factory.mktemp("model") / "vae.safetensors"
    random_vae(small_config(latent_channels=16), torch.float32).save(path)
    return path


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames that no model here pads."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a_clip.mkv", frames=5, width=32, height=16, fps=Fraction(16))


@pytest.mark.parametrize(
    ("out", "options", "title"),
    [
        ("x.latent", (), "a latent of ComfyUI"),
        ("x.pt", ("--format", "fastvideo"), "a bare tensor"),
        ("x.npy", ("--values", "raw"), "a bare tensor"),
        ("x.safetensors", ("--format", "tensor"), "a bare tensor"),
    ],
)
def test_decode_of_every_format_gives_the_frames_of_our_own(
    out: str,
    options: tuple[str, ...],
    title: str,
    fitting: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run(capsys, "encode", fitting, tmp_path / "own.safetensors", "--checkpoint", model).code == 0
    encoded = run(capsys, "encode", fitting, tmp_path / out, *options, "--checkpoint", model)
    assert encoded.code == 0
    assert (
        f"{out}, {'a tensor of FastVideo' if 'fastvideo' in options else title}, does not hold the clip" in caplog.text
    )
    values = ("--values", "raw") if out in ("x.pt", "x.npy") else ()
    for latents, more in ((tmp_path / "own.safetensors", ()), (tmp_path / out, values)):
        to = latents.with_suffix(".mkv") if more == () and latents.stem == "own" else tmp_path / "theirs.mkv"
        decoded = run(capsys, "decode", latents, to, *more, "--checkpoint", model, "--lossless")
        assert decoded.code == 0, decoded.err
    assert f"{title}, does not say which model encoded it; it is decoded by" in caplog.text
    own, theirs = (read_clip(tmp_path / name).astype(int) for name in ("own.mkv", "theirs.mkv"))
    assert np.abs(own - theirs).max() <= 1
    assert run(capsys, "info", tmp_path / out, "--json").result()["format"] == title


def test_decode_with_fps_sets_the_rate(
    fitting: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("own.safetensors", "x.latent"):
        run(capsys, "encode", fitting, tmp_path / name, "--checkpoint", model)
        run(capsys, "decode", tmp_path / name, tmp_path / "o.mkv", "--fps", 12, "--checkpoint", model)
        assert "at 16 frames" not in caplog.text
        with open_clip(tmp_path / "o.mkv") as clip:
            assert clip.info.fps == 12
        (tmp_path / "o.mkv").unlink()


def test_encode_for_musubi_names_the_file_as_it_looks_for_it(
    fitting: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("encode", fitting, tmp_path / "cache", "--format", "musubi", "--checkpoint", model, "--json")
    result = run(capsys, *words).result()
    assert Path(result["output"]) == tmp_path / "cache" / "a_clip_00000-005_0032x0016_wan.safetensors"
    assert (
        run(capsys, *words, "--frames", "4:").result()["output"].endswith("a_clip_00004-001_0032x0016_wan.safetensors")
    )
    again = run(capsys, *words)
    assert (again.code, "exists" in again.err) == (2, True)
    info = run(capsys, "info", result["output"], "--json").result()
    assert (info["format"], info["values"], info["dtype"]) == ("a cache of musubi-tuner", "normalized", "BF16")
    picture = write_clip(tmp_path / "one.png", frames=1, width=32, height=16, fps=Fraction(1))
    words = ("encode", picture, tmp_path / "cache", "--format", "musubi", "--checkpoint", model, "--json")
    assert run(capsys, *words).result()["output"].endswith("cache/one_0032x0016_wan.safetensors")


def test_encode_for_musubi_of_a_size_that_it_does_not_train_on_is_refused(
    clip: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, "encode", clip, tmp_path / "cache", "--format", "musubi", "--checkpoint", model)
    assert outcome.code == 2
    assert "has 6 frames of 19x13; musubi-tuner trains on 4n + 1 frames" in outcome.err
    assert "give --frames 0:5 and --size 16x16" in outcome.err
    assert not (tmp_path / "cache").exists()


def test_encode_for_others_says_that_size_and_length_are_lost(
    clip: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(capsys, "encode", clip, tmp_path / "x.npy", "--checkpoint", model)
    assert "size before padding, 6 frames of 19x13 (it decodes to 7 of 20x14)" in caplog.text


def test_decode_of_our_own_latents_as_raw_is_refused(
    clip: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "encode", clip, tmp_path / "l.safetensors", "--checkpoint", model)
    words = ("decode", tmp_path / "l.safetensors", tmp_path / "o.mkv", "--values", "raw", "--checkpoint", model)
    outcome = run(capsys, *words)
    assert (outcome.code, "its latents are normalized, not raw" in outcome.err) == (2, True)


def test_info_says_how_it_knows_whether_latents_are_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.randn(16, 2, 4, 4), tmp_path / "x.pt")
    info = run(capsys, "info", tmp_path / "x.pt", "--json").result()
    assert (info["shape"], info["values"]) == ([1, 16, 2, 4, 4], "normalized")
    assert "guessed by the statistics of wan2.1" in info["values_are"]
