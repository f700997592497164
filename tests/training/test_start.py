from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import random_vae, random_video, small_config
from tests.training.runs import Material, small_recipe, write_preset
from wan_vae import WanVAE
from wan_vae.errors import UserError
from wan_vae.model.blocks import PreActivationBlock, ResidualBlock
from wan_vae.model.halo import Halo
from wan_vae.training.initialization import FIRST_LOG_VARIANCE, in_training_mode, init_for_training, starting_point

CPU = torch.device("cpu")


@pytest.mark.parametrize(("block", "kind"), [("wan", ResidualBlock), ("preact", PreActivationBlock)])
def test_blocks_begin_as_the_identity(block: str, kind: type[nn.Module]) -> None:
    vae = random_vae(small_config(block=block))
    init_for_training(vae)
    blocks = [module for module in vae.modules() if isinstance(module, kind)]
    widths = [conv.in_channels for module in blocks if isinstance(conv := module.get_submodule("conv1"), nn.Conv3d)]
    assert len(blocks) == len(widths) >= 8
    for module, width in zip(blocks, widths, strict=True):
        x = torch.randn(1, width, 2, 3, 3, dtype=torch.float64)
        arguments = (x, Halo()) if kind is ResidualBlock else (x,)
        assert torch.equal(module(x, Halo()), module.get_submodule("shortcut")(*arguments))


@pytest.mark.parametrize("block", ["wan", "plain", "resnet", "bottleneck", "preact", "dense"])
def test_every_kind_can_be_eased(block: str) -> None:
    vae = WanVAE.from_config(small_config(block=block))
    init_for_training(vae)
    posterior = vae.eval().posterior(random_video(5, 8, 8, dtype=torch.float32))
    assert torch.isfinite(posterior.mean).all()
    assert posterior.logvar.mean().item() == pytest.approx(FIRST_LOG_VARIANCE, abs=2)
    for coder in (vae.encoder, vae.decoder):
        assert coder.conv_in.bias is not None
        assert 0.2 < coder.conv_in.bias.std().item() < 1.5


def test_the_seed_decides_the_weights(material: Material) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(starting_point(small_recipe(material), None, CPU).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_a_checkpoint_is_taken_as_it_is(material: Material, tmp_path: Path) -> None:
    vae = random_vae(small_config(), torch.float64)
    vae.save(tmp_path / "vae.safetensors")
    model = {"checkpoint": str(tmp_path / "vae.safetensors"), "gradient_checkpointing": True}
    started = starting_point(small_recipe(material, model=model), None, CPU)
    assert started.config == vae.config
    for name, weight in started.state_dict().items():
        torch.testing.assert_close(weight, vae.state_dict()[name].float(), rtol=0, atol=0)
    assert all(weight.requires_grad for weight in started.parameters())
    assert any(getattr(module, "recompute", False) for module in started.modules())


@pytest.mark.parametrize("block", ["wan", "resnet"])
def test_a_frozen_encoder(block: str, material: Material, tmp_path: Path) -> None:
    model = {"preset": str(write_preset(tmp_path / "p.yaml", block=block)), "trainable": "decoder"}
    recipe = small_recipe(material, model=model)
    vae = starting_point(recipe, None, CPU)
    trained = {name.partition(".")[0] for name, weight in vae.named_parameters() if weight.requires_grad}
    frozen = {name.partition(".")[0] for name, weight in vae.named_parameters() if not weight.requires_grad}
    assert frozen == {"encoder", "quant_conv"}
    assert trained == {"decoder", "post_quant_conv"}
    in_training_mode(vae, recipe)
    assert not any(module.training for module in vae.encoder.modules())
    assert all(module.training for module in vae.decoder.modules())
    in_training_mode(vae, small_recipe(material))
    assert all(module.training for module in vae.modules())


def test_a_state_brings_its_own_architecture(material: Material) -> None:
    config = small_config(encoder_width=6)
    vae = starting_point(small_recipe(material), {"config": config.to_dict()}, CPU)
    assert vae.config == config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"preset": "nowhere.yaml"}, "nowhere.yaml is neither a preset"),
        ({"checkpoint": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"preset": "nano"}, r"validation_frames: 3 frames are not 1 \+ 4k"),
    ],
)
def test_models_that_cannot_be_had(model: dict[str, Any], message: str, material: Material) -> None:
    stage = {"name": "a", "steps": 1, "batch": 1, "lengths": {5: 1.0}, "crop": 16, "learning_rate": 0.1}
    with pytest.raises(UserError, match=message):
        starting_point(small_recipe(material, stage, model=model, validation_frames=3), None, CPU)
