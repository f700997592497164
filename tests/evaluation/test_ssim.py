import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from wan_vae.evaluation.metrics import WINDOW, ssim


def torchmetrics_ssim(a: Tensor, b: Tensor) -> float:
    """The definition, in float64: what torchmetrics rounds away in float32 is more than the bounds below."""
    return structural_similarity_index_measure(b[None].double(), a[None].double(), data_range=255.0).item()


def gradient(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256]).float()


@pytest.mark.parametrize("height", [WINDOW, 32, 33, 75])
@pytest.mark.parametrize("width", [WINDOW, 50])
@pytest.mark.parametrize("noise", [2.0, 80.0])
def test_the_same_as_torchmetrics(height: int, width: int, noise: float) -> None:
    source = gradient(height, width)
    generator = torch.Generator().manual_seed(0)
    found = (source + noise * torch.randn(source.shape, generator=generator)).round().clamp(0, 255)
    assert ssim(source, found) == pytest.approx(torchmetrics_ssim(source, found), abs=1e-6)


@pytest.mark.parametrize(("source", "found"), [(255, 254), (250, 251), (0, 255), (0, 1)])
def test_flat_pictures_are_the_same_as_torchmetrics(source: int, found: int) -> None:
    pictures = torch.full((3, 40, 50), float(source)), torch.full((3, 40, 50), float(found))
    assert ssim(*pictures) == pytest.approx(torchmetrics_ssim(*pictures), abs=1e-6)


def test_near_white_nothing_is_rounded_away() -> None:
    white = np.full((3, 64, 80), 255, dtype=np.float32)
    speckled = white - np.random.default_rng(0).integers(0, 2, white.shape)
    pictures = torch.from_numpy(white), torch.from_numpy(speckled.astype(np.float32))
    assert ssim(*pictures) == pytest.approx(torchmetrics_ssim(*pictures), abs=1e-6)


def test_equal_pictures_have_exactly_one() -> None:
    picture = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) * 255
    assert ssim(picture, picture) == 1
