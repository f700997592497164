"""A small cache, for tests of what is made of it."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.cli.running import write_clip
from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.dataset import cache_latents


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of Parquet where pyarrow is not installed."""
    if "parquet" in item.name or "fastvideo" in item.name:
        pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return random_vae(small_config(latent_channels=16), torch.float32)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "s.ub").mkdir(parents=True)
    for name in ("a.mkv", "b.x.mkv", "s.ub/c.mkv"):
        write_clip(folder / name, frames=5, width=16, height=16, fps=Fraction(30000, 1001))
    (folder / "a.txt").write_text("Ein Käfer.", encoding="utf-8")
    return folder


@pytest.fixture
def cache(vae: WanVAE, clips: Path, tmp_path: Path) -> Path:
    cache_latents(clips, tmp_path / "cache", vae)
    return tmp_path / "cache"
