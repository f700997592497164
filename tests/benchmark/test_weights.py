import torch

from tests.helpers import random_latents, random_video, small_config
from wan_vae import WanVAE
from wan_vae.benchmark.job import random_weights
from wan_vae.config import BLOCK_KINDS


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (random_weights(small_config(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["quant_conv.weight"], other["quant_conv.weight"])


def test_no_path_is_hidden_and_nothing_is_clamped() -> None:
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
