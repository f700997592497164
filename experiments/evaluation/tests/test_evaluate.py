import json
import os
import subprocess
import sys
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.evaluation.evaluate import (
    Result,
    Shot,
    evaluate_shot,
    markdown_table,
    read_evaluation_set,
    scaled_size,
    summary,
)
from tests.cli.running import read_clip, run, write_clip
from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.errors import UserError
from wan_vae.evaluation.contact_sheet import SheetLayout
from wan_vae.evaluation.metrics import Score

ROOT = Path(__file__).parents[3]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mkv", frames=7, width=24, height=16, fps=Fraction(25))


@pytest.fixture
def vae() -> WanVAE:
    return random_vae(small_config(), torch.float32)


class MeanDifference:
    """Takes the place of LPIPS."""

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        assert a.shape == b.shape == (16, 24, 3)
        return float(np.abs(a.astype(float) - b).mean())


def test_evaluate_shot_gives_the_scores_of_the_reconstruct_command(
    clip: Path, vae: WanVAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae.save(tmp_path / "vae.safetensors")
    out = tmp_path / "out.mkv"
    options = (
        "--checkpoint",
        tmp_path / "vae.safetensors",
        "--dtype",
        "fp32",
        "--frames",
        "2:6",
        "--lossless",
        "--json",
    )
    expected = run(capsys, "reconstruct", clip, out, *options).result()
    result = evaluate_shot(vae, Shot(clip, 2, 6), 16, lpips=MeanDifference(), sheet=tmp_path / "sheet.png")
    assert (result.frames, result.size) == (4, (24, 16))
    assert result.score.psnr == pytest.approx(expected["psnr"], rel=1e-4)
    assert result.score.ssim == pytest.approx(expected["ssim"], rel=1e-4)
    difference = np.abs(read_clip(clip)[2:6].astype(float) - read_clip(out)).mean()
    assert result.score.lpips == pytest.approx(difference, rel=1e-4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == SheetLayout.of(24, 16).size(4)


def test_evaluate_shot_of_a_clip_that_ends_early_scores_the_frames_it_has(clip: Path, vae: WanVAE) -> None:
    result = evaluate_shot(vae, Shot(clip, 5, 54), 12)
    assert (result.frames, result.size, result.score.lpips) == (2, (18, 12), None)


def test_evaluate_shot_after_the_end_of_the_clip_is_refused(clip: Path, vae: WanVAE) -> None:
    with pytest.raises(UserError, match="7"):
        evaluate_shot(vae, Shot(clip, 7, 9), 16)


def test_evaluate_shot_of_an_upscaling_decoder_is_refused(clip: Path) -> None:
    with pytest.raises(UserError, match="2 times the size"):
        evaluate_shot(random_vae(small_config(output_upscale=2), torch.float32), Shot(clip, 0, 3), 16)


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((640, 272), (602, 256)),
        ((1280, 720), (456, 256)),
        ((176, 144), (312, 256)),
        ((720, 1280), (256, 456)),
        ((99, 99), (256, 256)),
    ],
)
def test_scaled_size_has_the_short_side_and_an_even_long_one(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert scaled_size(*size, 256) == scaled


def test_reports_list_shots_and_their_mean() -> None:
    results = [
        Result(Shot(Path("in/a.mkv"), 0, 49), 49, (456, 256), Score(30.0, 0.9, 0.125)),
        Result(Shot(Path("in/a.mkv"), 49, 98), 8, (456, 256), Score(35.0, 0.8, 0.375)),
    ]
    assert markdown_table(results) == (
        "| shot | size | PSNR (dB) | SSIM | LPIPS |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| a.mkv, frames 0 to 48 | 456x256 | 30.00 | 0.9000 | 0.1250 |\n"
        "| a.mkv, frames 49 to 56 | 456x256 | 35.00 | 0.8000 | 0.3750 |\n"
        "| mean |  | 32.50 | 0.8500 | 0.2500 |\n"
    )
    described = summary(results)
    assert described["mean"]["lpips"] == 0.25
    assert described["shots"][1] == {
        "clip": "a.mkv", "start": 49, "frames": 8, "size": "456x256", "psnr": 35.0, "ssim": 0.8, "lpips": 0.375
    }  # fmt: skip


def test_markdown_table_leaves_out_what_was_not_measured() -> None:
    results = [
        Result(Shot(Path("a.mkv"), 0, 1), 1, (8, 8), Score(float("inf"), None, None)),
        Result(Shot(Path("b.mkv"), 0, 1), 1, (16, 16), Score(20.0, 0.5, None)),
    ]
    table = markdown_table(results)
    assert "LPIPS" not in table
    assert "| a.mkv, frames 0 to 0 | 8x8 | inf |  |\n" in table
    json.dumps(summary(results), allow_nan=False)


def evaluate(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    (folder / "bench.yaml").write_text("frames: 3\nshort_side: 16\nshots: {clip.mkv: [0, 2]}\n", encoding="utf-8")
    command = ("bench.yaml", "--clips", ".", "--checkpoint", "vae.safetensors", "--device", "cpu", *arguments)
    return subprocess.run(
        [sys.executable, "-m", "experiments.evaluation", *map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_script_writes_scores_and_sheets(clip: Path, vae: WanVAE) -> None:
    folder = clip.parent
    vae.save(folder / "vae.safetensors")
    outputs = ("--dtype", "fp32", "--json", "out.json", "--markdown", "out.md", "--sheets", "sheets")
    done = evaluate(folder, *outputs)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.md").read_text(encoding="utf-8") == done.stdout
    assert "| clip.mkv, frames 2 to 4 | 24x16 |" in done.stdout
    assert "`vae.safetensors` in float32 on cpu, torch" in done.stdout
    assert "LPIPS was not measured" in done.stdout
    values = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert (values["checkpoint"], values["device"], values["dtype"]) == ("vae.safetensors", "cpu", "float32")
    assert values["wan_vae"].startswith(version("wan_vae"))
    assert [shot["frames"] for shot in values["shots"]] == [2, 3]
    assert sorted(path.name for path in (folder / "sheets").iterdir()) == ["clip-000.png", "clip-002.png"]


def test_script_of_bad_arguments_writes_nothing(clip: Path, vae: WanVAE) -> None:
    folder = clip.parent
    vae.save(folder / "vae.safetensors")
    for arguments, word in (
        (("--json", "clip.mkv", "--overwrite"), "both input and output"),
        (("--json", "out", "--markdown", "out"), "two outputs"),
        (("--backbone", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
    ):
        refused = evaluate(folder, *arguments)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused
        assert word in refused.stderr
    assert {path.name for path in folder.iterdir()} == {"bench.yaml", "clip.mkv", "vae.safetensors"}


GOOD = "frames: 4\nshort_side: 16\nshots:\n  a.mkv: [0, 3, 20]\n"


def test_read_evaluation_set_ends_shots_at_the_next_or_at_the_frame_limit(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").touch()
    (tmp_path / "bench.yaml").write_text(GOOD, encoding="utf-8")
    bench = read_evaluation_set(tmp_path / "bench.yaml", tmp_path)
    clip = tmp_path / "a.mkv"
    assert bench.short_side == 16
    assert bench.shots == (Shot(clip, 0, 3), Shot(clip, 3, 7), Shot(clip, 20, 24))
    assert bench.shots[1].name == "a-003"


def test_read_evaluation_set_reads_the_shipped_one(tmp_path: Path) -> None:
    for name in ("bikes", "bigbuckbunny", "carphone_pristine"):
        (tmp_path / f"{name}.mp4").touch()
    bench = read_evaluation_set(ROOT / "experiments" / "evaluation" / "configs" / "bench.yaml", tmp_path)
    assert bench.short_side == 256
    assert [shot.name for shot in bench.shots][:2] == ["bikes-000", "bikes-030"]
    assert len(bench.shots) == 8
    assert all(0 < shot.stop - shot.start <= 49 for shot in bench.shots)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("frames: [", "is not a YAML file"),
        ("- 1", "must have frames, short_side, shots"),
        (GOOD + "speed: 3\n", "and nothing else"),
        (GOOD.replace("frames: 4", "frames: 0"), "frames: 0"),
        (GOOD.replace("16", "true"), "short_side: True"),
        ("frames: 4\nshort_side: 16\nshots: {}\n", "shots: {}"),
        (GOOD.replace("[0, 3, 20]", "[]"), r"a\.mkv: \[\]"),
        (GOOD.replace("[0, 3, 20]", "[3, 3]"), r"a\.mkv: \[3, 3\]"),
        (GOOD.replace("[0, 3, 20]", "[-1]"), r"a\.mkv: \[-1\]"),
        (GOOD.replace("[0, 3, 20]", "0"), r"a\.mkv: 0"),
        (GOOD + "  ./a.mkv: [3]\n", "two shots that are called a-003"),
        (GOOD.replace("a.mkv", "b.mkv"), r"b\.mkv, which is not in"),
    ],
)
def test_read_evaluation_set_of_a_bad_file_gets_a_sentence(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").touch()
    path = tmp_path / "bench.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"bench\.yaml .*{words}"):
        read_evaluation_set(path, tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        read_evaluation_set(tmp_path / "nowhere.yaml", tmp_path)
