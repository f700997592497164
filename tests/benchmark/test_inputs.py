from pathlib import Path

import pytest
import torch

from tests.benchmark.records import make_config
from tests.helpers import random_latents, random_video, small_config
from wan_vae import WanVAE
from wan_vae.benchmark.inputs import check_clip, random_weights, write_inputs
from wan_vae.config import BLOCK_KINDS, load_config
from wan_vae.errors import UserError


def test_check_clip_that_fits_passes() -> None:
    check_clip(make_config(), load_config("wan2.1"))
    check_clip(make_config(frames=1), load_config("wan2.2"))
    check_clip(make_config(frames=3, width=2), small_config())


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"frames": 16}, "--frames is 16, not 1 \\+ 4k; 13 or 17 would fit"),
        ({"frames": 2}, "1 or 5 would fit"),
        ({"width": 60}, "--size is 60x16; this model takes multiples of 8, such as 64x16"),
        ({"height": 1}, "such as 16x8"),
        ({"width": 0}, "such as 8x16"),
    ],
)
def test_check_clip_that_does_not_fit_raises(asked: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_clip(make_config(**asked), load_config("wan2.1"))


def test_inputs_of_models_with_alpha_and_of_pictures_are_theirs(tmp_path: Path) -> None:
    config = make_config(frames=1, width=16, height=16)
    with_alpha = write_inputs(config, small_config(image_channels=4), tmp_path / "inputs.safetensors")
    assert with_alpha["video"] == (1, 4, 1, 16, 16)
    with pytest.raises(UserError, match=r"--frames is 5, and this model takes single pictures; give --frames 1"):
        check_clip(make_config(frames=5, width=16, height=16), small_config(images_only=True))


def test_random_weights_same_seed_gives_the_same_weights() -> None:
    first, second, other = (random_weights(small_config(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["quant_conv.weight"], other["quant_conv.weight"])


def test_random_weights_hide_no_path_and_clamp_nothing() -> None:
    for kind in BLOCK_KINDS:
        config = small_config(block=kind)
        weights = random_weights(config)
        assert all(weight.any() for weight in weights.values() if weight.is_floating_point())
        vae = WanVAE.from_weights(config, weights)
        raw = vae.posterior(random_video(5, 16, 16, dtype=torch.float32)).mode()
        video = vae.decode(random_latents(config, 3, 8, 8, dtype=torch.float32))
        assert 0.05 < raw.std() < 20, kind
        assert 0.001 < video.std() < 1, kind
        assert (video.abs() < 1).float().mean() > 0.9, kind
