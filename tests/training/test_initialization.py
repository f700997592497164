from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from tests.helpers import random_vae, random_video, small_config
from tests.training.runs import Material, small_recipe, write_preset
from wan_vae import WanVAE
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.model.blocks import PreActivationBlock, ResidualBlock
from wan_vae.model.halo import Halo
from wan_vae.training.initialization import (
    FIRST_LOG_VARIANCE,
    fit_linear_skip,
    init_for_training,
    initial_vae,
    set_training_mode,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("block", "kind"), [("wan", ResidualBlock), ("preact", PreActivationBlock)])
def test_init_for_training_makes_blocks_the_identity(block: str, kind: type[nn.Module]) -> None:
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
def test_init_for_training_works_for_every_block(block: str) -> None:
    torch.manual_seed(0)
    vae = WanVAE.from_config(small_config(block=block))
    init_for_training(vae)
    posterior = vae.eval().posterior(random_video(5, 8, 8, dtype=torch.float32))
    assert torch.isfinite(posterior.mean).all()
    assert posterior.logvar.mean().item() == pytest.approx(FIRST_LOG_VARIANCE, abs=2)
    for coder in (vae.encoder, vae.decoder):
        assert coder.conv_in.bias is not None
        assert 0.2 < coder.conv_in.bias.std().item() < 1.5


def test_initial_vae_depends_on_the_seed_only(material: Material) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(initial_vae(small_recipe(material), None, CPU).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_initial_vae_from_a_checkpoint_keeps_its_weights(material: Material, tmp_path: Path) -> None:
    vae = random_vae(small_config(), torch.float64)
    vae.save(tmp_path / "vae.safetensors")
    model = {"checkpoint": str(tmp_path / "vae.safetensors"), "gradient_checkpointing": True}
    started = initial_vae(small_recipe(material, model=model), None, CPU)
    assert started.config == vae.config
    for name, weight in started.state_dict().items():
        torch.testing.assert_close(weight, vae.state_dict()[name].float(), rtol=0, atol=0)
    assert all(weight.requires_grad for weight in started.parameters())
    assert any(getattr(module, "recompute", False) for module in started.modules())


@pytest.mark.parametrize("block", ["wan", "resnet"])
def test_initial_vae_trainable_decoder_freezes_the_encoder(block: str, material: Material, tmp_path: Path) -> None:
    model = {"preset": str(write_preset(tmp_path / "p.yaml", block=block)), "trainable": "decoder"}
    recipe = small_recipe(material, model=model)
    vae = initial_vae(recipe, None, CPU)
    trained = {name.partition(".")[0] for name, weight in vae.named_parameters() if weight.requires_grad}
    frozen = {name.partition(".")[0] for name, weight in vae.named_parameters() if not weight.requires_grad}
    assert frozen == {"encoder", "quant_conv"}
    assert trained == {"decoder", "post_quant_conv"}
    set_training_mode(vae, recipe)
    assert not any(module.training for module in vae.encoder.modules())
    assert all(module.training for module in vae.decoder.modules())
    set_training_mode(vae, small_recipe(material))
    assert all(module.training for module in vae.modules())


def test_initial_vae_from_a_state_has_its_architecture(material: Material) -> None:
    config = small_config(encoder_width=6)
    vae = initial_vae(small_recipe(material), {"config": config.to_dict()}, CPU)
    assert vae.config == config


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"preset": "nowhere.yaml"}, "nowhere.yaml is neither a preset"),
        ({"checkpoint": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"preset": "nano"}, r"validation_frames: 3 frames are not 1 \+ 4k"),
    ],
)
def test_initial_vae_invalid_model_raises(model: dict[str, Any], message: str, material: Material) -> None:
    stage = {"name": "a", "steps": 1, "batch": 1, "lengths": {5: 1.0}, "crop": 16, "learning_rate": 0.1}
    with pytest.raises(UserError, match=message):
        initial_vae(small_recipe(material, stage, model=model, validation_frames=3), None, CPU)


CONFIG = small_config(linear_skip=True)
SCALES = (3.0, 1.0, 0.5)


def low_rank_videos(count: int) -> list[Tensor]:
    """Return clips with blocks of rank 3: two directions at rest, and one of change that first frames do not have."""
    generator = torch.Generator().manual_seed(0)
    time, space = CONFIG.temporal_compression, CONFIG.spatial_compression
    still = torch.randn(2, 3, 1, space, space, generator=generator, dtype=torch.float64).expand(-1, -1, time, -1, -1)
    change = torch.randn(1, 3, 1, space, space, generator=generator, dtype=torch.float64)
    change = torch.cat([change, -change], dim=2)
    basis = torch.cat([still, change])
    basis = basis / basis.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    offset = torch.full((3, 1, 1, 1), 0.1, dtype=torch.float64)
    videos = []
    for _ in range(count):
        amounts = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
        amounts = 0.1 * torch.tensor(SCALES).view(1, 3, 1, 1, 1) * amounts
        amounts[:, 2, 0] = 0
        patches = torch.einsum("bzthw,zcfpq->bthwcfpq", amounts, basis) + offset
        frames = rearrange(patches, "b t h w c f p q -> b c (t f) (h p) (w q)")
        videos.append(frames[:, :, time - 1 :])
    return videos


def fitted(videos: list[Tensor], config: VAEConfig = CONFIG) -> WanVAE:
    vae = random_vae(config)
    init_for_training(vae)
    fit_linear_skip(vae, videos)
    return vae


def coded(vae: WanVAE, video: Tensor) -> tuple[Tensor, Tensor]:
    """Return the raw latents of a video, and what is decoded from them."""
    latents = vae.moments(video, Halo()).chunk(2, dim=1)[0]
    return latents, vae.pixels(latents, Halo())


def test_fit_linear_skip_reconstructs_low_rank_data() -> None:
    videos = low_rank_videos(3)
    vae = fitted(videos)
    for video in videos:
        torch.testing.assert_close(coded(vae, video)[1], video)


def test_fit_linear_skip_gives_latents_of_mean_square_1_that_do_not_correlate() -> None:
    videos = low_rank_videos(3)
    vae = fitted(videos)
    codes = torch.cat([coded(vae, video)[0][:, :, 1:] for video in videos]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(codes.mean(dim=1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    variances = codes.cov(correction=0).diagonal()
    torch.testing.assert_close(codes.cov(correction=0), variances.diag(), rtol=0, atol=1e-6)
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(variances.mean(), torch.tensor(1.0, dtype=torch.float64))


def test_fit_linear_skip_loses_the_least_of_all_linear_codes() -> None:
    # By the Eckart-Young theorem, which gives the smallest loss of any linear code of that size. Far from zero, where
    # a covariance from sums of squares loses digits.
    videos = [0.9 + 0.01 * random_video(5, 8, 12, seed=seed) for seed in range(3)]
    vae = fitted(videos)
    skip = vae.encoder.linear_skip
    assert skip is not None
    parts = {1: [video[:, :, ::2] for video in videos], 2: [video[:, :, 1:] for video in videos]}
    for frames, shown in parts.items():
        blocks = torch.cat([skip.blocks_of(part, frames).flatten(0, 3) for part in shown])
        least = torch.linalg.svdvals(blocks - blocks.mean(dim=0))[3:].square().sum()
        name = "first" if frames == 1 else "later"
        encode, decode = (half.get_submodule(f"linear_skip.{name}") for half in (vae.encoder, vae.decoder))
        lost = (decode(encode(blocks)) - blocks).square().sum()
        torch.testing.assert_close(lost, least)


def test_fit_linear_skip_codes_first_frames_like_blocks_at_rest() -> None:
    videos = low_rank_videos(3)
    vae = fitted(videos)
    still = videos[0][:, :, :1].expand(-1, -1, 5, -1, -1)
    latents, _ = coded(vae, still)
    apart = (latents[:, :, :1] - latents[:, :, 1:]).square().mean() / latents.square().mean()
    assert apart < 0.05


@pytest.mark.parametrize("frames", [1, 5])
def test_fit_linear_skip_of_constant_data_is_finite(frames: int) -> None:
    vae = fitted([torch.full((1, 3, frames, 4, 4), 0.25, dtype=torch.float64)])
    _, decoded = coded(vae, random_video(5, 4, 4))
    assert torch.isfinite(decoded).all()
