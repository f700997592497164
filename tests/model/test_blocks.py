"""What the network leaves to a later pass on GPUs, on a CPU with the plain twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae import WanVAE
from wan_vae.model import blocks, resample
from wan_vae.model.layers import AfterBias


@settings(max_examples=15)
@given(st.booleans(), st.integers(1, 3), st.sampled_from(["wan", "plain"]))
def test_biases_that_the_next_pass_adds_change_no_value(level_shortcuts: bool, latents: int, block: str) -> None:
    multipliers = (1, 1) if level_shortcuts else (1, 2)
    config = small_config(level_shortcuts=level_shortcuts, width_multipliers=multipliers, block=block)
    vae, given_latents = random_vae(config), random_latents(config, latents, 3, 2)
    video = random_video(1 + 2 * (latents - 1), 6, 4)
    with torch.inference_mode():
        expected = vae.encode(video), vae.decode(given_latents)
        with pytest.MonkeyPatch.context() as patch:
            for module in (blocks, resample):
                patch.setattr(module, "adds_bias_in_another_pass", lambda x: True)
            assert relative_difference(vae.encode(video), expected[0]) < 1e-12
            assert relative_difference(vae.decode(given_latents), expected[1]) < 1e-12


def test_biases_are_left_to_the_next_pass_only_where_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(AfterBias, "into", lambda norm, out, x: seen.append(norm.bias))
    monkeypatch.setattr(AfterBias, "__call__", lambda norm, x: seen.append(norm.bias) or x)
    vae, video = random_vae(small_config()), random_video(1, 4, 4)
    run(vae, video)
    assert not seen
    monkeypatch.setattr(blocks, "adds_bias_in_another_pass", lambda x: True)
    run(vae, video)
    assert len(seen) == sum(isinstance(module, blocks.PlainBlock) for module in vae.encoder.modules())


def run(vae: WanVAE, video: torch.Tensor) -> None:
    with torch.inference_mode():
        vae.encode(video)
