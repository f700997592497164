import dataclasses

import numpy as np
import pytest
import torch

from tests.helpers import random_vae, small_config
from wan_vae.training.validation import with_measured_statistics


def clips(*frames: int, height: int = 16, width: int = 24) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (count, height, width, 3), dtype=np.uint8) for count in frames]


@pytest.mark.parametrize("level_shortcuts", [False, True])
def test_final_latents_have_mean_0_and_deviation_1(level_shortcuts: bool) -> None:
    config = small_config(level_shortcuts=level_shortcuts, width_multipliers=(2, 2))
    vae = random_vae(config)
    measured = with_measured_statistics(vae, clips(5, 5))
    assert measured.config.latent_mean != vae.config.latent_mean
    assert dataclasses.replace(measured.config, latent_mean=config.latent_mean, latent_std=config.latent_std) == config
    videos = [torch.from_numpy(clip).permute(3, 0, 1, 2)[None].double() / 127.5 - 1 for clip in clips(5, 5)]
    final = torch.cat([measured.encode(video) for video in videos]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(final.mean(dim=1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(final.std(dim=1, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-4)


def test_every_clip_counts_the_same() -> None:
    vae = random_vae(small_config())
    small, large = clips(1), clips(9, height=32, width=32)
    measured = {name: with_measured_statistics(vae, some).config.latent_mean for name, some in
                (("small", small), ("large", large), ("both", small + large))}  # fmt: skip
    expected = (np.array(measured["small"]) + np.array(measured["large"])) / 2
    assert measured["both"] == pytest.approx(tuple(expected), rel=1e-4, abs=1e-5)


def test_the_network_is_as_it_was() -> None:
    vae = random_vae(small_config(block="resnet"), torch.float32).train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    measured = with_measured_statistics(vae, clips(3))
    for name, value in measured.state_dict().items():
        assert torch.equal(value, before[name])
    assert not measured.training
    assert vae.config == small_config(block="resnet")
    latents = torch.zeros(1, 3, 2, 2, 2)
    raw = measured.denormalize(latents)
    torch.testing.assert_close(measured.decode(latents), vae.eval().decode(vae.normalize(raw)))


def test_a_channel_that_never_changes_has_a_deviation_all_the_same() -> None:
    vae = random_vae(small_config())
    vae.quant_conv.weight[0] = 0
    config = with_measured_statistics(vae, clips(3)).config
    assert vae.quant_conv.bias is not None
    assert config.latent_mean[0] == pytest.approx(vae.quant_conv.bias[0].item(), rel=1e-4)
    assert 0 < config.latent_std[0] < 1e-5
