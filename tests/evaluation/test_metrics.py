import json

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from wan_vae.evaluation.metrics import WINDOW, Metrics, Score, mean_score, ssim


class MeanDifference:
    """Takes the place of LPIPS."""

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(float) - b).mean())


def score_of(source: np.ndarray, found: np.ndarray, lpips: MeanDifference | None = None) -> Score:
    metrics = Metrics(lpips)
    for pair in zip(source, found, strict=True):
        metrics.add(*pair)
    return metrics.score()


def test_metrics_score_is_the_mean_over_frames() -> None:
    generator = np.random.default_rng(0)
    source = generator.integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    noisy = np.clip(source + generator.normal(0, 1 + np.arange(5)[:, None, None, None], source.shape), 0, 255)
    noisy = noisy.round().astype(np.uint8)
    together = score_of(source, noisy, MeanDifference())
    errors = ((source.astype(float) - noisy) ** 2).mean(axis=(1, 2, 3))
    assert together.psnr == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-4)
    assert together.lpips == pytest.approx(np.abs(source.astype(float) - noisy).mean())
    metrics = Metrics(MeanDifference())
    for pair in zip(source, noisy, strict=True):
        metrics.add(*pair)
    assert [frame.psnr for frame in metrics.frames] == pytest.approx(10 * np.log10(255**2 / errors), abs=1e-4)
    apart = [score_of(source[index, None], noisy[index, None], MeanDifference()) for index in range(5)]
    assert len({score.ssim for score in apart}) == 5
    assert metrics.frames == apart
    assert vars(mean_score(apart)) == pytest.approx(vars(together))


def test_metrics_of_noise_are_those_of_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    source, found = generator.integers(0, 256, (2, 1, 24, 40, 3), dtype=np.uint8)
    wide = [torch.from_numpy(frames).permute(0, 3, 1, 2).to(torch.float64) for frames in (found, source)]
    score = score_of(source, found)
    assert score.psnr == pytest.approx(peak_signal_noise_ratio(*wide, data_range=255.0).item(), abs=1e-5)
    assert score.ssim == pytest.approx(structural_similarity_index_measure(*wide, data_range=255.0).item(), abs=1e-6)


def test_metrics_of_equal_frames_are_perfect() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert score_of(frames, frames) == Score(float("inf"), pytest.approx(1), None)
    assert json.loads(json.dumps(score_of(frames, frames).to_dict(), allow_nan=False))["psnr"] == "infinite"


def test_metrics_of_sixteen_bits_are_scaled() -> None:
    eight = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert score_of(eight.astype(np.uint16) * 257, eight).psnr > 100


def test_metrics_of_frames_smaller_than_the_window_have_no_ssim() -> None:
    frames = np.zeros((3, 10, 40, 3), dtype=np.uint8)
    assert score_of(frames, frames + 1) == Score(pytest.approx(20 * np.log10(255), abs=1e-3), None, None)


def test_mean_score_of_a_missing_value_is_missing() -> None:
    assert mean_score([Score(30.0, 0.9, 0.125), Score(35.0, 0.8, 0.375)]) == Score(32.5, pytest.approx(0.85), 0.25)
    assert mean_score([Score(float("inf"), None, 0.5), Score(20.0, 0.5, None)]) == Score(float("inf"), None, None)


def torchmetrics_ssim(a: Tensor, b: Tensor) -> float:
    """The definition, in float64: what torchmetrics rounds away in float32 is more than the bounds below."""
    return structural_similarity_index_measure(b[None].double(), a[None].double(), data_range=255.0).item()


def gradient(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256]).float()


@pytest.mark.parametrize("height", [WINDOW, 32, 33, 75])
@pytest.mark.parametrize("width", [WINDOW, 50])
@pytest.mark.parametrize("noise", [2.0, 80.0])
def test_ssim_of_noise_is_that_of_torchmetrics(height: int, width: int, noise: float) -> None:
    source = gradient(height, width)
    generator = torch.Generator().manual_seed(0)
    found = (source + noise * torch.randn(source.shape, generator=generator)).round().clamp(0, 255)
    assert ssim(source, found) == pytest.approx(torchmetrics_ssim(source, found), abs=1e-6)


@pytest.mark.parametrize(("source", "found"), [(255, 254), (250, 251), (0, 255), (0, 1)])
def test_ssim_of_flat_pictures_is_that_of_torchmetrics(source: int, found: int) -> None:
    pictures = torch.full((3, 40, 50), float(source)), torch.full((3, 40, 50), float(found))
    assert ssim(*pictures) == pytest.approx(torchmetrics_ssim(*pictures), abs=1e-6)


def test_ssim_near_white_is_that_of_torchmetrics() -> None:
    white = np.full((3, 64, 80), 255, dtype=np.float32)
    speckled = white - np.random.default_rng(0).integers(0, 2, white.shape)
    pictures = torch.from_numpy(white), torch.from_numpy(speckled.astype(np.float32))
    assert ssim(*pictures) == pytest.approx(torchmetrics_ssim(*pictures), abs=1e-6)


def test_ssim_of_equal_pictures_is_one() -> None:
    picture = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) * 255
    assert ssim(picture, picture) == 1
