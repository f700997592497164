import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers import random_latents, random_video, relative_difference, small_config
from wan_vae import WanVAE
from wan_vae.benchmark import implementations
from wan_vae.benchmark.implementations import OURS, THEIRS, load, obstacle, unusable, without_weights
from wan_vae.benchmark.job import random_weights

STYLE = {"width_multipliers": (1, 2, 2), "temporal_downsample": (True, True)}


@pytest.mark.parametrize("changes", [{}, {"level_shortcuts": True, "patch_size": 2}])
def test_both_compute_the_same(changes: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = small_config(**STYLE, **changes)
    WanVAE.from_weights(config, random_weights(config)).save(tmp_path / "weights", layout="diffusers")
    ours, theirs = (
        load(name, config, tmp_path / "weights", device="cpu", dtype=torch.float64) for name in (OURS, THEIRS)
    )
    video, latents = random_video(9, 16, 16), random_latents(config, 3, 2, 2)
    with torch.inference_mode():
        assert relative_difference(ours.encode(video), theirs.encode(video)) < 1e-12
        decoded = [each.decode(each.accepted(latents)) for each in (ours, theirs)]
    assert decoded[0].dtype == decoded[1].dtype == torch.float64
    assert relative_difference(*decoded) < 1e-12


def test_what_diffusers_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    assert obstacle(small_config(**STYLE)) is None
    assert "'dense'" in obstacle(small_config(**STYLE, block="dense"))
    assert "upscales" in obstacle(small_config(**STYLE, output_upscale=2))
    assert "this model takes 2" in obstacle(small_config())
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in obstacle(small_config(**STYLE))


def test_without_weights_there_are_shapes() -> None:
    config = small_config(**STYLE)
    for name in (OURS, THEIRS) if find_spec("diffusers") else (OURS,):
        blank = without_weights(name, config, device=torch.device("cpu"), dtype=torch.bfloat16)
        with torch.inference_mode():
            video = blank.decode(torch.empty(1, 3, 3, 2, 2, device="meta", dtype=torch.bfloat16))
        assert (video.device.type, video.dtype, tuple(video.shape)) == ("meta", torch.bfloat16, (1, 3, 9, 8, 8))


def test_an_installed_package_may_be_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unusable(OURS) is None
    monkeypatch.setitem(sys.modules, "diffusers", ModuleType("diffusers"))
    assert unusable(THEIRS) == "diffusers cannot be used (module 'diffusers' has no attribute 'AutoencoderKLWan')"
