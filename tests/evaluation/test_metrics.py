import json

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from wan_vae.evaluation.metrics import Metrics, Score, mean_score


class MeanDifference:
    """Takes the place of LPIPS."""

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(float) - b).mean())


def score_of(source: np.ndarray, found: np.ndarray, lpips: MeanDifference | None = None) -> Score:
    metrics = Metrics(lpips)
    for pair in zip(source, found, strict=True):
        metrics.add(*pair)
    return metrics.score()


def test_each_value_is_the_mean_over_frames() -> None:
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


def test_the_same_as_torchmetrics() -> None:
    generator = np.random.default_rng(0)
    source, found = generator.integers(0, 256, (2, 1, 24, 40, 3), dtype=np.uint8)
    wide = [torch.from_numpy(frames).permute(0, 3, 1, 2).to(torch.float64) for frames in (found, source)]
    score = score_of(source, found)
    assert score.psnr == pytest.approx(peak_signal_noise_ratio(*wide, data_range=255.0).item(), abs=1e-5)
    assert score.ssim == pytest.approx(structural_similarity_index_measure(*wide, data_range=255.0).item(), abs=1e-6)


def test_equal_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert score_of(frames, frames) == Score(float("inf"), pytest.approx(1), None)
    assert json.loads(json.dumps(score_of(frames, frames).to_dict(), allow_nan=False))["psnr"] == "infinite"


def test_sixteen_bits_are_scaled() -> None:
    eight = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    assert score_of(eight.astype(np.uint16) * 257, eight).psnr > 100


def test_frames_smaller_than_the_window_have_no_ssim() -> None:
    frames = np.zeros((3, 10, 40, 3), dtype=np.uint8)
    assert score_of(frames, frames + 1) == Score(pytest.approx(20 * np.log10(255), abs=1e-3), None, None)


def test_what_one_has_not_the_mean_has_not() -> None:
    assert mean_score([Score(30.0, 0.9, 0.125), Score(35.0, 0.8, 0.375)]) == Score(32.5, pytest.approx(0.85), 0.25)
    assert mean_score([Score(float("inf"), None, 0.5), Score(20.0, 0.5, None)]) == Score(float("inf"), None, None)
