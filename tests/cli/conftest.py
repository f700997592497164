from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.cli.running import write_clip
from tests.helpers import random_vae, small_config
from wan_vae.cli import messages


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine would print some, which tests of what is printed do not expect."""
    monkeypatch.setattr(messages, "INTERVAL", 1e6)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that compresses 2x2 in space and by 2 in time."""
    path = tmp_path_factory.mktemp("checkpoint") / "vae.safetensors"
    random_vae(small_config(), torch.float32).save(path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames of 19x13 at 30000/1001 frames a second."""
    return write_clip(tmp_path / "clip.mkv", frames=6, width=19, height=13, fps=Fraction(30000, 1001))


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    """Sixteen seconds; at 1000 frames per second they keep any machine busy for a while."""
    return write_clip(tmp_path / "long.mkv", frames=400, width=128, height=96, fps=Fraction(25))
