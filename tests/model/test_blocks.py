"""What the network leaves to a later pass on GPUs, on a CPU with the plain twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae import WanVAE
from wan_vae.config import BLOCK_KINDS
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


@pytest.mark.parametrize("split", [False, True])
def test_hooks_in_blocks_see_and_change_what_they_do_with_gradients(
    split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "adds_bias_in_another_pass", lambda x: True)
    vae, latents = random_vae(small_config()), random_latents(small_config(), 3, 2, 2)
    seen: list[torch.Tensor] = []
    block = vae.decoder.middle.block1
    block.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    block.norm1.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    block.norm2.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0] + 1,))
    block.conv2 = torch.nn.utils.parametrizations.weight_norm(block.conv2)
    block.norm2.forward = lambda x: torch.tanh(x)
    with torch.enable_grad():
        vae.requires_grad_(True)
        expected = vae.decode(latents).detach()
        vae.requires_grad_(False)
    whole, seen[:] = torch.cat(seen, dim=2), []
    found = vae.decode(latents, latents_per_pass=1 if split else None)
    assert relative_difference(found, expected) <= 1e-12
    assert relative_difference(torch.cat(seen, dim=2), whole) <= 1e-12


def test_another_module_may_take_the_place_of_a_norm() -> None:
    vae, latents = random_vae(small_config()), random_latents(small_config(), 2, 2, 2)
    vae.decoder.middle.block1.norm1 = torch.nn.Tanh()
    with torch.enable_grad():
        expected = vae.requires_grad_(True).decode(latents).detach()
    assert relative_difference(vae.requires_grad_(False).decode(latents), expected) <= 1e-12


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


@pytest.mark.parametrize("block", BLOCK_KINDS)
def test_dropout_of_every_kind_acts_in_training_only(block: str) -> None:
    vae, video = random_vae(small_config(block=block, dropout=0.5)), random_video(3, 4, 6)

    def reconstruction(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return vae(video)[0]

    assert torch.equal(reconstruction(0), reconstruction(1))
    vae.train()
    assert not torch.equal(reconstruction(0), reconstruction(1))
    assert torch.equal(reconstruction(0), reconstruction(0))
