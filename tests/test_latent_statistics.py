"""Statistics between raw and normalized latents."""

import pytest
import torch

from tests.helpers import random_latents, random_vae, small_config
from wan_vae.posterior import LatentStatistics

CONFIG = small_config()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalize_in_half_precision_keeps_precise_statistics(dtype: torch.dtype) -> None:
    vae = random_vae(CONFIG)
    raw = random_latents(CONFIG, 2, 3, 3).to(dtype)
    exact = vae.normalize(raw.to(torch.float64))
    assert vae.normalize(raw).dtype == dtype
    assert ((vae.normalize(raw) - exact).abs() <= torch.finfo(dtype).eps * exact.abs() / 2 * 1.001).all()


def test_denormalized_inverts_normalized() -> None:
    raw = random_latents(CONFIG, 2, 3, 3).to(torch.float64)
    statistics = LatentStatistics.of(CONFIG, raw.dtype, raw.device)
    torch.testing.assert_close(statistics.denormalized(statistics.normalized(raw)), raw)
