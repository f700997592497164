"""Several checkpoints on one clip, in one page."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.running import read_clip, run, write_clip
from tests.cli.test_errors import assert_one_sentence, listing
from tests.helpers import random_vae, small_config
from tests.report.reading import Page
from tests.test_tiny import random_tiny
from wan_vae import UserError, WanVAE, compare_file, reconstruct_file


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mkv", frames=6, width=19, height=13, fps=Fraction(25))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of one name, of models with different numbers of latent channels."""
    folder = tmp_path_factory.mktemp("compare")
    paths = [folder / name / "vae.safetensors" for name in ("a", "b")]
    for channels, path in enumerate(paths, 2):
        path.parent.mkdir()
        random_vae(small_config(latent_channels=channels), torch.float32).save(path)
    return paths


def test_compare_shows_what_each_checkpoint_makes_of_the_clip(
    clip: Path, checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    options = [word for path in checkpoints for word in ("--checkpoint", path)]
    # The command would decode in bfloat16 where that is fast.
    result = run(capsys, "compare", clip, out, *options, "--frames", "1:5", "--dtype", "fp32", "--json").result()
    page = Page(out)
    pictures = page.pictures
    names = [f"{path.parent.name}/vae.safetensors" for path in checkpoints]
    assert (list(result["scores"]), page.data["names"], result["frames"]) == (names, names, 4)
    assert [group["reconstruction"] for group in page.data["latents"]] == [0, 1]
    assert page.attributes("canvas", "data-channel") == ["0", "1", "0", "1", "2"]
    for number, checkpoint in enumerate(checkpoints):
        made = tmp_path / f"made{number}.mkv"
        alone = reconstruct_file(clip, made, checkpoint, frames=(1, 5), lossless=True)
        for frame, picture in enumerate(read_clip(made)):
            assert np.array_equal(pictures[f"r{number}-{frame}"], picture)
        assert result["scores"][names[number]]["psnr"] == pytest.approx(alone.score.psnr)
        assert WanVAE.from_pretrained(checkpoint).digest() in page.text
    for frame, picture in enumerate(read_clip(clip)[1:5]):
        assert np.array_equal(pictures[f"s{frame}"], picture)


def test_compare_prints_a_line_of_scores(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "compare", clip, tmp_path / "page.html", "--checkpoint", "nano")
    assert outcome.code == 0
    assert "nano PSNR " in outcome.out
    assert " dB SSIM 0." in outcome.out


def test_compare_progress_counts_the_frames_of_all_checkpoints(
    clip: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    compare_file(clip, tmp_path / "page.html", checkpoints, progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 12) for done in range(13)]


def test_compare_takes_models_of_both_kinds(clip: Path, tmp_path: Path) -> None:
    vaes = [random_vae(small_config()).float(), random_tiny(dtype=torch.float32)]
    result = compare_file(clip, tmp_path / "page.html", vaes)
    assert list(result.scores) == ["model 1", "model 2"]


def test_compare_refuses_what_it_cannot_show(
    clip: Path, checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upscaling, out = random_vae(small_config(output_upscale=2)).float(), tmp_path / "page.html"
    before = listing(tmp_path)
    twice = ("--checkpoint", "nano", "--checkpoint", "nano")
    assert_one_sentence(run(capsys, "compare", clip, out, *twice), "nano is named twice")
    assert_one_sentence(run(capsys, "compare", clip, tmp_path / "a.png", *twice[:2]), "a.png", ".html")
    assert_one_sentence(run(capsys, "compare", clip, out), "--checkpoint")
    with pytest.raises(UserError, match="model 2 decodes to 2 times the size"):
        compare_file(clip, out, [random_vae(small_config()).float(), upscaling])
    with pytest.raises(UserError, match="name one or more"):
        compare_file(clip, out, [])
    assert listing(tmp_path) == before
