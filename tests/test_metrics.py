import numpy as np
import pytest

from wan_vae.metrics import Fidelity


def test_psnr_is_the_mean_over_frames_however_they_come() -> None:
    generator = np.random.default_rng(0)
    source = generator.integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    noisy = np.clip(source + generator.normal(0, 1 + np.arange(5)[:, None, None, None], source.shape), 0, 255)
    noisy = noisy.round().astype(np.uint8)
    together, apart = Fidelity(), Fidelity()
    together.update(source, noisy)
    for index in range(5):
        apart.update(source[index, None], noisy[index, None])
    errors = ((source.astype(float) - noisy) ** 2).mean(axis=(1, 2, 3))
    assert together.psnr() == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-4)
    assert apart.psnr() == pytest.approx(together.psnr(), abs=1e-5)
    assert apart.ssim() == pytest.approx(together.ssim(), abs=1e-5)


def test_equal_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    fidelity = Fidelity()
    fidelity.update(frames, frames)
    assert fidelity.psnr() == float("inf")
    assert fidelity.ssim() == pytest.approx(1)


def test_sixteen_bits_are_scaled() -> None:
    eight = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    fidelity = Fidelity()
    fidelity.update(eight.astype(np.uint16) * 257, eight)
    assert fidelity.psnr() > 100


def test_frames_smaller_than_the_window_have_no_ssim() -> None:
    frames = np.zeros((1, 10, 40, 3), dtype=np.uint8)
    fidelity = Fidelity()
    fidelity.update(frames, frames + 1)
    assert fidelity.ssim() is None
    assert fidelity.psnr() == pytest.approx(20 * np.log10(255), abs=1e-3)
