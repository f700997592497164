import base64
import hashlib
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.report.reading import Page
from wan_vae.errors import UserError
from wan_vae.evaluation.contact_sheet import error_picture
from wan_vae.evaluation.metrics import Metrics, Score
from wan_vae.report.page import WORST, Report, check_page

NAME = "<img src=x onerror=alert(1)>&\"'</script><script>alert(2)</script>\n\x1b"


def noise(frames: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, channels), dtype=np.uint8)


def written(
    path: Path,
    source: np.ndarray,
    *reconstructions: np.ndarray,
    names: tuple[str, ...] = ("nano",),
    title: str = "clip.mp4",
    latents: torch.Tensor | None = None,
    **options: int,
) -> tuple[Page, list[list[Score]]]:
    """Write a page, and return it with the scores of all frames."""
    frames, height, width = source.shape[:3]
    scores = []
    with Report(title, frames, width, height, Fraction(25, 2), names, **options) as report:
        for number, reconstruction in enumerate(reconstructions):
            metrics = Metrics()
            for pair in zip(source, reconstruction, strict=True):
                metrics.add(*pair)
                report.add(number, *pair, metrics.frames[-1])
            scores.append(metrics.frames)
        if latents is not None:
            for chunk in latents.split(2, dim=2):
                report.add_latents(0, chunk, 4)
        report.write(path, {"source": title}, [{"checkpoint": name} for name in names], "As they are.")
    return Page(path), scores


def test_page_of_a_short_clip_holds_every_frame_exactly(tmp_path: Path) -> None:
    source, made = noise(5, 12, 20), noise(5, 12, 20, seed=1)
    page, _ = written(tmp_path / "page.html", source, made)
    pictures = page.pictures
    assert len(pictures) == 15
    for frame in range(5):
        assert np.array_equal(pictures[f"s{frame}"], source[frame])
        assert np.array_equal(pictures[f"r0-{frame}"], made[frame])
        assert np.array_equal(pictures[f"e0-{frame}"], error_picture(source[frame], made[frame]))
    assert page.data["shown"] == list(range(5))
    assert (page.data["fps"], page.data["width"], page.data["height"]) == (12.5, 20, 12)
    assert "Pictures are exact." in page.text


def test_page_metrics_are_those_of_evaluation(tmp_path: Path) -> None:
    source = noise(4, 16, 16)
    made = np.where(noise(4, 16, 16, seed=2) < 40, source // 2, source)
    made[2] = source[2]
    page, (scores,) = written(tmp_path / "page.html", source, made)
    values = page.data["values"][0]
    assert values["PSNR"] == [None if math.isinf(s.psnr) else round(s.psnr, 4) for s in scores]
    assert values["SSIM"] == [round(s.ssim, 6) for s in scores]
    assert values["PSNR"][2] is None
    assert "LPIPS" not in values
    ordered = sorted((s.psnr, frame) for frame, s in enumerate(scores) if frame != 2)
    assert page.attributes("a", "data-frame") == [str(frame) for _, frame in ordered]
    assert f"{ordered[0][0]:.2f} dB" in page.text


def test_page_of_frames_too_small_for_ssim_plots_psnr_alone(tmp_path: Path) -> None:
    page, _ = written(tmp_path / "page.html", noise(2, 4, 4), noise(2, 4, 4, seed=1))
    assert page.attributes("figure", "data-metric") == ["PSNR"]


def test_page_of_an_exact_reconstruction_says_so(tmp_path: Path) -> None:
    source = noise(2, 12, 12)
    page, _ = written(tmp_path / "page.html", source, source)
    assert "Every frame came back exactly." in page.text
    assert page.data["values"][0]["PSNR"] == [None, None]


@pytest.mark.parametrize("place", ["title", "names"])
def test_page_escapes_names_from_files(tmp_path: Path, place: str) -> None:
    harmless, _ = written(tmp_path / "plain.html", noise(1, 12, 12), noise(1, 12, 12, seed=1))
    given = {"title": NAME} if place == "title" else {"names": (NAME,)}
    page, _ = written(tmp_path / "page.html", noise(1, 12, 12), noise(1, 12, 12, seed=1), **given)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<img src=x onerror=alert(1)>" in page.text
    if place == "names":
        assert page.data["names"][0].startswith("<img src=x onerror=alert(1)>&\"'</script>")


def test_page_of_a_name_that_is_no_unicode_is_written(tmp_path: Path) -> None:
    page, _ = written(tmp_path / "page.html", noise(1, 4, 4), noise(1, 4, 4, seed=1), title="clip\udcff.mp4")
    assert "clip\\udcff.mp4" in page.text


def test_page_names_no_address_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    page, _ = written(tmp_path / "page.html", noise(2, 12, 12), noise(2, 12, 12, seed=1))
    addresses = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "srcset")
    ]
    assert all(address.startswith(("#frame=", "data:")) for address in addresses)
    assert "@import" not in page.scripts["style"]
    assert "url(" not in page.scripts["style"]
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.scripts[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_page_of_large_frames_keeps_to_its_bytes(tmp_path: Path) -> None:
    source, made = noise(12, 400, 600), noise(12, 400, 600, seed=1)
    page, _ = written(tmp_path / "page.html", source, made, most_bytes=400_000)
    assert (tmp_path / "page.html").stat().st_size < 400_000 * 4 / 3 + 60_000
    assert page.pictures["s0"].shape[1] <= 480
    assert "scaled to 480 x 320" in page.text


def test_page_of_a_long_clip_shows_every_so_many_frames_and_the_worst(tmp_path: Path) -> None:
    source = np.zeros((100, 48, 48, 3), dtype=np.uint8)
    made = source + 8
    bad = [13, 14, 57, 58, 71, 72, 83, 97]
    made[bad] += np.arange(20, 28, dtype=np.uint8)[:, None, None, None]
    latents = torch.randn(1, 4, 26, 6, 6, generator=torch.Generator().manual_seed(0))
    page, (scores,) = written(tmp_path / "page.html", source, made, latents=latents, most_bytes=60_000)
    shown = page.data["shown"]
    step = shown[1]
    assert step > 1
    assert set(shown) == set(range(0, 100, step)) | set(bad)
    assert page.data["latents"][0]["shown"] == sorted({math.ceil(frame / 4) for frame in range(0, 100, step)})
    assert len(page.data["values"][0]["PSNR"]) == len(scores) == 100
    assert page.attributes("a", "data-frame") == [str(frame) for frame in reversed(bad)]
    assert len(bad) == WORST
    assert all(f"{kind}{frame}" in page.picture_names for frame in shown for kind in ("s", "r0-", "e0-"))
    assert f"One frame in {step}, and the worst frames, can be looked at" in page.text


def test_page_of_several_reconstructions_holds_the_source_once(tmp_path: Path) -> None:
    source, made, other = noise(3, 12, 12), noise(3, 12, 12, seed=1), noise(3, 12, 12, seed=2)
    page, scores = written(tmp_path / "page.html", source, made, other, names=("a", "b"))
    pictures = page.pictures
    assert len(pictures) == 3 * (1 + 2 + 2)
    assert np.array_equal(pictures["r1-2"], other[2])
    assert np.array_equal(pictures["e1-2"], error_picture(source[2], other[2]))
    assert [len(values["PSNR"]) for values in page.data["values"]] == [3, 3]
    assert page.data["values"][1]["PSNR"][1] == round(scores[1][1].psnr, 4)


def test_page_with_alpha_lays_pictures_over_black(tmp_path: Path) -> None:
    source, made = noise(2, 12, 12, 4), noise(2, 12, 12, 4, seed=1)
    source[..., 3], made[..., 3] = 0, 255
    page, _ = written(tmp_path / "page.html", source, made)
    assert not page.pictures["s1"].any()
    assert np.array_equal(page.pictures["r0-1"], made[1, ..., :3])


def test_page_latents_are_shown_channel_by_channel_with_their_values(tmp_path: Path) -> None:
    latents = torch.randn(1, 5, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    latents[:, 4] = 3.0
    latents[:, 3] = -7.0
    source = noise(9, 12, 12)
    page, _ = written(tmp_path / "page.html", source, source, latents=latents)
    (group,) = page.data["latents"]
    assert (group["shown"], group["compression"], group["cell"]) == ([0, 1, 2], 4, [8, 6])
    picture = page.pictures["l0-2"]
    assert picture.shape == (12, 24, 3)  # 5 channels in 2 rows of 3
    expected = ((latents[0, 1, 2] / 3 + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.array_equal(picture[:6, 8:16, 0], expected.astype(np.uint8))
    assert (picture[6:, 8:16] == 255).all()
    assert (picture[6:, :8] == 0).all()
    for channel in range(5):
        values = latents[0, channel].double()
        assert f"mean {values.mean():.2f}, std {values.std(correction=0):.2f}" in page.text


def test_page_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one frame"), Report("a", 1, 4, 4, Fraction(1), ["b"]) as report:
        report.write(tmp_path / "page.html", {}, [{}], "")


@pytest.mark.parametrize("name", ["page.png", "page"])
def test_page_under_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*\\.html"):
        check_page(Path(name))
