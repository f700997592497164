"""`--memory`: tiles where whole pictures do not fit, and an error where tiles do not fit either."""

import re
from fractions import Fraction
from pathlib import Path

import pytest

from tests.cli.running import read_clip, run, write_clip


@pytest.mark.slow
def test_memory_budget_changes_no_pixel(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wan_vae")
    clip = write_clip(tmp_path / "clip.mkv", frames=5, width=192, height=128, fps=Fraction(25))
    options = ("--checkpoint", checkpoint, "--dtype", "fp32", "--lossless")
    latents, whole = tmp_path / "whole.safetensors", tmp_path / "whole.mkv"
    assert run(capsys, "encode", clip, latents, *options[:4]).code == 0
    assert run(capsys, "decode", latents, whole, *options).code == 0
    outcome = run(capsys, "decode", latents, tmp_path / "tiled.mkv", *options, "--memory", "1MiB")
    smallest = re.search(r"; (\d+MiB) is the smallest that works", outcome.err)
    assert smallest is not None, outcome.err
    assert run(capsys, "decode", latents, tmp_path / "tiled.mkv", *options, "--memory", smallest[1]).code == 0
    assert " tiles (rows x columns)" in caplog.text
    difference = read_clip(whole).astype(int) - read_clip(tmp_path / "tiled.mkv").astype(int)
    assert abs(difference).max() <= 1
    commands = (("encode", clip, "again.safetensors"), ("decode", latents, "again.mkv"), ("reconstruct", clip, "r.mkv"))
    for name, source, output in commands:
        arguments = (name, source, tmp_path / output, *options[: 4 if name == "encode" else 5], "--memory", "1MiB")
        outcome = run(capsys, *arguments)
        assert outcome.code == 2
        assert "too little" in outcome.err
        assert outcome.err.count("\n") == 1
        smallest = re.search(r"; (\d+MiB) is the smallest that works", outcome.err)
        assert smallest is not None, outcome.err
        assert run(capsys, *arguments[:-1], smallest[1]).code == 0


@pytest.mark.parametrize("memory", ["much", "0"])
def test_memory_option_that_is_no_size_is_refused(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: str
) -> None:
    outcome = run(capsys, "encode", clip, tmp_path / "l.safetensors", "--checkpoint", checkpoint, "--memory", memory)
    assert outcome.code == 2
    assert "such as 4GiB, or auto" in outcome.err


def test_info_plan_keeps_to_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--memory", "400MiB", "--dtype", "fp32", "--device", "cpu", "--json")
    result = run(capsys, "info", "--plan", "1280x720x80", *options).result()
    assert (result["frames"], result["height"], result["width"]) == (81, 720, 1280)
    assert "tiles" in result["encode_clip"]
    assert 0 < result["encode_clip_peak"] <= 400 * 2**20
    assert "too little" in result["decode_clip"], "the frames alone take more"
    assert run(capsys, "info", "--plan", "720x1280").code == 2


def test_info_plan_of_a_preset_needs_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "info", "wan2.1", "--plan", "832x480x5", "--memory", "2GiB", "--json").result()
    assert result["decode_clip_peak"] <= 2 * 2**30
