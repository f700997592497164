"""Between raw latents and final ones."""

import pytest
import torch

from tests.helpers import random_latents, small_config
from wan_vae.latent_statistics import LatentStatistics

CONFIG = small_config()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    raw = random_latents(CONFIG, 2, 3, 3).to(dtype)
    statistics = LatentStatistics.of(CONFIG, dtype, raw.device)
    exact = LatentStatistics.of(CONFIG, torch.float64, raw.device).normalized(raw.to(torch.float64))
    normalized = statistics.normalized(raw)
    assert normalized.dtype == dtype
    assert ((normalized - exact).abs() <= torch.finfo(dtype).eps * exact.abs() / 2 * 1.001).all()


def test_there_and_back() -> None:
    raw = random_latents(CONFIG, 2, 3, 3).to(torch.float64)
    statistics = LatentStatistics.of(CONFIG, raw.dtype, raw.device)
    torch.testing.assert_close(statistics.denormalized(statistics.normalized(raw)), raw)
