"""Tiny autoencoders on the command line."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.running import read_clip, run, write_clip
from tests.test_tiny import random_tiny
from wan_vae import TinyVAE, UserError
from wan_vae.cli import common
from wan_vae.config import load_config
from wan_vae.interchange import write_latents
from wan_vae.io.latents_file import LatentsFile


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "taew2_1.safetensors"
    save_file(random_tiny(dtype=torch.float32).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def clip(checkpoint: Path) -> Path:
    return write_clip(checkpoint.with_name("clip.mkv"), frames=6, width=18, height=14, fps=Fraction(25))


def test_encode_and_decode_with_a_tiny_checkpoint_keep_size_length_and_rate(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, out = tmp_path / "z.safetensors", tmp_path / "out.mkv"
    options = ("--checkpoint", checkpoint, "--device", "cpu", "--dtype", "fp32")
    assert run(capsys, "encode", clip, latents, *options, "--json").result()["latents"] == [1, 16, 3, 2, 3]
    stored = LatentsFile(latents)
    assert stored.info.config == load_config("wan2.1")
    outcome = run(capsys, "decode", latents, out, *options, "--lossless", "--json")
    result = outcome.result()
    assert (result["frames"], result["size"], result["fps"], outcome.err) == (6, "18x14", "25", "")
    video = TinyVAE.from_pretrained(checkpoint).decode(next(stored.chunks(3)))
    levels = ((video[0, :, :6, :14, :18] + 1) * 127.5).round().permute(1, 2, 3, 0).numpy()
    assert np.abs(read_clip(out) - levels).max() <= 1


def test_reconstruct_with_a_tiny_checkpoint_pairs_frames_with_their_sources(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mkv"
    words = ("reconstruct", clip, out, "--checkpoint", checkpoint, "--lossless", "--dtype", "fp32", "--json")
    result = run(capsys, *words).result()
    error = (read_clip(clip).astype(float) - read_clip(out)) ** 2
    assert result["frames"] == 6
    assert result["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))), abs=1e-3)


def test_latents_of_any_weights_are_decoded_without_a_warning_but_not_those_of_another_space(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    latents, out = tmp_path / "z.safetensors", tmp_path / "out.mkv"
    other = tmp_path / "taew2_1_other.safetensors"
    save_file(random_tiny(dtype=torch.float16).state_dict(), other)
    assert run(capsys, "encode", clip, latents, "--checkpoint", other).code == 0
    caplog.clear()
    assert run(capsys, "decode", latents, out, "--checkpoint", checkpoint).code == 0
    assert "WARNING" not in caplog.text
    larger = tmp_path / "taew2_2_super.safetensors"
    save_file(random_tiny("taew2_2_super", torch.float16).state_dict(), larger)
    outcome = run(capsys, "decode", latents, out, "--checkpoint", larger, "--overwrite")
    assert (outcome.code, "whose latent channels is 48 and not 16" in outcome.err) == (2, True)
    write_latents(tmp_path / "z.latent", torch.zeros(1, 16, 1, 2, 2), load_config("wan2.1"))
    outcome = run(capsys, "decode", tmp_path / "z.latent", tmp_path / "no.mkv", "--checkpoint", larger)
    assert (outcome.code, "the model's latents have 48" in outcome.err) == (2, True)
    assert not (tmp_path / "no.mkv").exists()


def test_checkpoint_values_decide_what_the_network_is_fed(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, light = tmp_path / "z.safetensors", tmp_path / "lighttaew2_1.safetensors"
    light.write_bytes(checkpoint.read_bytes())
    assert run(capsys, "encode", clip, latents, "--checkpoint", checkpoint).code == 0
    outputs = {}
    for name, options in {
        "plain": (checkpoint,),
        "light": (light,),
        "raw": (checkpoint, "--checkpoint-values", "raw"),
        "normalized": (light, "--checkpoint-values", "normalized"),
    }.items():
        out = tmp_path / f"{name}.mkv"
        assert run(capsys, "decode", latents, out, "--lossless", "--checkpoint", *options).code == 0
        outputs[name] = read_clip(out)
    assert np.array_equal(outputs["plain"], outputs["normalized"])
    assert np.array_equal(outputs["light"], outputs["raw"])
    assert not np.array_equal(outputs["plain"], outputs["raw"])
    outcome = run(capsys, "decode", latents, tmp_path / "x.mkv", "--checkpoint-values", "raw")
    assert (outcome.code, "nano is no tiny autoencoder" in outcome.err) == (2, True)


def test_budgets_and_shards_are_refused_in_one_sentence(
    checkpoint: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for command, out in (("encode", "z.safetensors"), ("reconstruct", "r.mkv")):
        outcome = run(capsys, command, clip, tmp_path / out, "--checkpoint", checkpoint, "--memory", "1GiB")
        assert outcome.code == 2
        assert "The memory is '1GiB', but tiny autoencoders keep to no budget" in outcome.err
        assert not (tmp_path / out).exists()
    monkeypatch.setattr(common, "join", lambda shards, device: None)
    load = common.model_loader("cpu", "fp32", 2, None)
    with pytest.raises(UserError, match="a tiny autoencoder, the work of one process; leave --shards out"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("name", "values"), [("taew2_1.pth", "normalized"), ("LightTAEW2_1.pth", "raw"), ("mine.pth", "unknown")]
)
def test_info_names_a_tiny_autoencoder_and_its_latents(
    name: str, values: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = random_tiny(dtype=torch.float16)
    torch.save(vae.state_dict(), tmp_path / name)
    result = run(capsys, "info", tmp_path / name, "--json").result()
    described = {key: result[key] for key in ("model", "layout", "decoder", "latents_of", "values", "digest")}
    expected = {"model": "tiny autoencoder", "layout": "taehv", "decoder": "base", "latents_of": "wan2.1"}
    assert described == {**expected, "values": values, "digest": vae.digest()}
