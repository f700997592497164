import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.evaluation import rate_distortion
from experiments.evaluation.evaluate import Shot
from experiments.evaluation.rate_distortion import Pictures, by_bicubic, by_h264, by_model, linear_code
from tests.cli.running import write_clip
from wan_vae import WanVAE
from wan_vae.cli import main


@pytest.fixture(scope="module")
def frames() -> Pictures:
    """Smooth pictures that move."""
    row, column = np.mgrid[:64, :96]
    shown = [np.stack([row + 4 * time, column, row + column], axis=-1) for time in range(9)]
    return (128 + 100 * np.sin(np.stack(shown) / 15)).astype(np.uint8)


def test_by_model_counts_8_bits_a_latent(frames: Pictures) -> None:
    bits, psnr = by_model(WanVAE.from_pretrained("nano", dtype="float32"), frames)
    assert bits == pytest.approx(8 * 16 * 3 / (9 * 64))
    assert psnr > 18


def test_by_bicubic_without_reduction_is_the_source(frames: Pictures) -> None:
    assert by_bicubic(1, frames) == (24, float("inf"))
    assert by_bicubic(4, frames)[1] > by_bicubic(12, frames)[1]


def test_by_h264_of_lower_quality_is_smaller_and_worse(frames: Pictures) -> None:
    good, bad = by_h264(18, frames), by_h264(45, frames)
    assert 0 < bad[0] < good[0]
    assert bad[1] < good[1]


def test_linear_code_of_more_values_is_better(frames: Pictures, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "fit.mkv", frames=17, width=96, height=64, fps=Fraction(25))
    fit = [rate_distortion.read(Shot(clip, 0, 17), 64)]
    with torch.inference_mode():
        few, many = (by_model(linear_code(values, fit), frames) for values in (2, 32))
    assert many[0] == pytest.approx(16 * few[0])
    assert many[1] > few[1]


@pytest.mark.slow
def test_command_writes_points_and_a_plot(frames: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.mkv", frames=40, width=96, height=64, fps=Fraction(25))
    (tmp_path / "bench.yaml").write_text("frames: 5\nshort_side: 64\nshots: {a.mkv: [0]}\n")
    names = ("bench.yaml", "--clips", ".", "--fit", ".", "--json", "rates.json", "--plot", "rates.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*names], program=rate_distortion.app)
    assert not ended.value.code
    points = json.loads((tmp_path / "rates.json").read_text())["bits per pixel, PSNR (dB)"]
    assert {name: len(line) for name, line in points.items()} == {
        "nano": 1, "linear code": 5, "smaller pictures, bicubic": 5, "H.264": 5
    }  # fmt: skip
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as ended:
        main([*names], program=rate_distortion.app)
    assert ended.value.code == 2
