"""The page of two clips, and that of `reconstruct`."""

from fractions import Fraction
from pathlib import Path
from shutil import copy

import numpy as np
import pytest

from tests.cli.running import read_clip, run, write_clip
from tests.cli.test_errors import assert_one_sentence, listing
from tests.evaluation.test_lpips import random_backbone
from tests.helpers import random_vae, small_config
from tests.report.reading import Page
from wan_vae import UserError, WanVAE, reconstruct_file
from wan_vae.compare import report_file
from wan_vae.evaluation.metrics import Metrics
from wan_vae.files import encode_file
from wan_vae.io import load_latents

HOSTILE = "<img src=x onerror=alert(1)>.mkv"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / HOSTILE, frames=6, width=19, height=13, fps=Fraction(25))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "vae.safetensors"
    random_vae(small_config()).float().save(path)
    return path


def test_reconstruct_report_shows_the_written_frames_and_latents(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page_path, latents = tmp_path / "out.mkv", tmp_path / "page.html", tmp_path / "latents.safetensors"
    command = ("reconstruct", clip, out, "--checkpoint", checkpoint, "--lossless", "--report", page_path, "--json")
    result = run(capsys, *command, "--frames", "0:5").result()
    assert result["report"] == str(page_path)
    page, source, made = Page(page_path), read_clip(clip)[:5], read_clip(out)
    pictures = page.pictures
    metrics = Metrics()
    for frame, pair in enumerate(zip(source, made, strict=True)):
        metrics.add(*pair)
        assert np.array_equal(pictures[f"s{frame}"], pair[0])
        assert np.array_equal(pictures[f"r0-{frame}"], pair[1])
    assert page.data["values"][0]["PSNR"] == [round(score.psnr, 4) for score in metrics.frames]
    encode_file(clip, latents, checkpoint, frames=(0, 5))
    values = load_latents(latents)[0]
    (group,) = page.data["latents"]
    assert group["shown"] == list(range(values.shape[2]))
    assert f"mean {values[0, 0].double().mean():.2f}, std {values[0, 0].double().std(correction=0):.2f}" in page.text
    for fact in (
        f"SHA-256 {WanVAE.from_pretrained(checkpoint).digest()}",
        "--frames 0:5",
        "--lossless yes",
        "frames/s",
    ):
        assert fact in page.text
    assert "before they were compressed" in page.text
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]


def test_reconstruct_report_of_an_upscaling_decoder_is_refused(clip: Path, tmp_path: Path) -> None:
    vae = random_vae(small_config(output_upscale=2)).float()
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"2 times the size.*for a report to show"):
        reconstruct_file(clip, tmp_path / "out.mkv", vae, report=tmp_path / "page.html")
    assert listing(tmp_path) == before


def test_report_compares_the_clips_as_they_are(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, page_path = tmp_path / "made.avi", tmp_path / "page.html"
    reconstruct_file(clip, made, "nano", frames=(2, 5), lossless=True)
    result = run(capsys, "report", clip, made, page_path, "--frames", "2:5", "--json").result()
    metrics = Metrics()
    for pair in zip(read_clip(clip)[2:5], read_clip(made), strict=True):
        metrics.add(*pair)
    psnrs = [score.psnr for score in metrics.frames]
    assert (result["output"], result["frames"], result["size"]) == (str(page_path), 3, "19x13")
    assert result["psnr"] == pytest.approx(sum(psnrs) / 3)
    assert result["worst_frame"] == psnrs.index(min(psnrs))
    page = Page(page_path)
    assert page.data["values"][0]["PSNR"] == [round(value, 4) for value in psnrs]
    assert page.data["names"] == ["made.avi"]
    assert page.data["latents"] == []


def test_reports_with_lpips_plot_it_by_frame(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, made, pages = random_backbone(tmp_path / "alex.safetensors"), tmp_path / "made.mkv", tmp_path / "pages"
    clip = write_clip(tmp_path / "clip.mkv", frames=3, width=40, height=36, fps=Fraction(25))
    options = ("--lpips", backbone, "--json")
    model = ("--checkpoint", checkpoint)
    one = run(capsys, "reconstruct", clip, made, *model, "--lossless", "--report", pages / "1.html", *options).result()
    two = run(capsys, "report", clip, made, pages / "2.html", *options).result()
    three = run(capsys, "compare", clip, pages / "3.html", *model, *options).result()
    assert one["lpips"] == two["lpips"] == three["scores"][checkpoint.name]["lpips"] > 0
    for number in (1, 2, 3):
        page = Page(pages / f"{number}.html")
        assert page.attributes("figure", "data-metric") == ["PSNR", "SSIM", "LPIPS"]
        assert sum(page.data["values"][0]["LPIPS"]) / 3 == pytest.approx(one["lpips"], abs=1e-6)


def test_report_of_clips_that_do_not_match_is_refused(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_clip(tmp_path / "small.mkv", frames=6, width=10, height=8, fps=Fraction(25))
    short = write_clip(tmp_path / "short.mkv", frames=1, width=19, height=13, fps=Fraction(25))
    before = listing(tmp_path)
    out = tmp_path / "page.html"
    assert_one_sentence(run(capsys, "report", clip, small, out), "small.mkv is 10x8", "19x13", "--size", "such as 10x8")
    assert_one_sentence(run(capsys, "report", clip, short, out), "short.mkv has 1 frame ", "6 frames;", "--frames")
    assert_one_sentence(run(capsys, "report", clip, clip, tmp_path / "page.png"), "page.png", ".html")
    assert_one_sentence(run(capsys, "report", clip, tmp_path / "no.mp4", out), "no.mp4 does not exist")
    assert listing(tmp_path) == before


def test_report_of_a_clip_that_ends_early_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = iter([read_clip(clip), read_clip(clip)[:4]])
    monkeypatch.setattr("wan_vae.compare._frames", lambda clip: iter(next(read)))
    with pytest.raises(UserError, match=r"other\.mkv ends after 4 frames, before the other clip"):
        report_file(clip, copy(clip, tmp_path / "other.mkv"), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_report_does_not_replace_a_file_unasked(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists; pass --overwrite"):
        report_file(clip, clip, out)
    report_file(clip, clip, out, overwrite=True)
    assert Page(out).data["frames"] == 6


def test_report_that_is_cancelled_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        assert total == 6
        if done == 3:
            raise KeyboardInterrupt

    before = listing(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        report_file(clip, clip, tmp_path / "page.html", progress=cancel)
    assert listing(tmp_path) == before
