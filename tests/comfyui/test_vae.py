"""Accelerated VAEs give what ComfyUI's own give: whole, tiled, and after memory ran out."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.comfyui.conftest import CHECKOUT, Comfy
from tests.comfyui.stubs import NEW, OLD, loaded
from tests.helpers import random_vae
from wan_vae import UserError, VAEConfig, WanVAE
from wan_vae.config import load_config
from wan_vae.integrations.comfyui import FirstStageModel
from wan_vae.ops.conv3d import lay_out_weights

TILE = {"tile_x": 4, "tile_y": 4, "overlap": 1, "tile_t": 2, "overlap_t": 1}
IMAGES = torch.rand(6, 35, 50, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _as_nodes_run() -> Iterator[None]:
    with torch.inference_mode():
        yield


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_accelerated_vae_gives_the_latents_and_pictures_of_comfyui(comfy: Comfy, theirs: Callable[[], Any]) -> None:
    own = theirs()
    fast = comfy.vae.FastVAE.of(own)
    latents = own.encode(IMAGES)
    pictures = own.decode(latents)
    assert pictures.shape == (1, 5, 32, 48, 3)
    assert 0.01 < pictures.std() < 0.5
    assert_same(fast.encode(IMAGES), latents)
    assert_same(fast.decode(latents), pictures)


def test_accelerated_vae_with_tiled_nodes_gives_whole_pictures(comfy: Comfy, theirs: Callable[[], Any]) -> None:
    own = theirs()
    fast = comfy.vae.FastVAE.of(own)
    latents = own.encode(IMAGES)
    assert_same(fast.encode_tiled(IMAGES, **{**TILE, "tile_x": 32, "tile_y": 32, "overlap": 8}), latents)
    assert_same(fast.decode_tiled(latents, **TILE), own.decode(latents))


def test_accelerated_vae_out_of_memory_gives_whole_pictures_by_tiles(
    comfy: Comfy, theirs: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = theirs()
    fast = comfy.vae.FastVAE.of(own)
    latents = own.encode(IMAGES)
    tried = []

    def fail_once(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def failing(x: torch.Tensor) -> torch.Tensor:
            tried.append(x.shape)
            if len(tried) % 2:
                raise torch.OutOfMemoryError("out of memory")
            return call(x)

        return failing

    stage = fast.first_stage_model
    monkeypatch.setattr(stage, "encode", fail_once(stage.encode))
    monkeypatch.setattr(stage, "decode", fail_once(stage.decode))
    if CHECKOUT:
        monkeypatch.setattr("comfy.model_management.OOM_EXCEPTION", torch.OutOfMemoryError)
    assert_same(fast.encode(IMAGES), latents)
    assert_same(fast.decode(latents), own.decode(latents))
    assert len(tried) == 4


@pytest.mark.slow
def test_accelerated_vae_in_less_memory_than_whole_pictures_take_gives_the_same(
    comfy: Comfy, theirs: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = theirs()
    fast = comfy.vae.FastVAE.of(own)
    images = torch.rand(5, 128, 160, 3, generator=torch.Generator().manual_seed(4))
    latents = own.encode(images)
    # The planner's own words for a call that does not fit as a whole, and for what is enough with tiles.
    size = {"frames": 5, "height": 128, "width": 160}
    budgets = []
    for direction in ("encode", "decode"):
        budget = fast.network.plan(direction, **size, memory=2**40).peak - 1
        assert fast.network.plan(direction, **size, memory=budget).tiling is not None
        budgets.append(budget)
    monkeypatch.setattr("wan_vae.integrations.comfyui.reports_free_memory", lambda device: False)
    monkeypatch.setattr(fast.first_stage_model, "_free_memory", lambda device: int(budgets[0] / 0.8))
    assert_same(fast.encode(images), latents)
    monkeypatch.setattr(fast.first_stage_model, "_free_memory", lambda device: int(budgets[1] / 0.8))
    assert_same(fast.decode(latents), own.decode(latents))


def test_accelerated_vae_shares_the_weights_and_leaves_the_other_vae_alone(
    comfy: Comfy, ours: WanVAE, theirs: Callable[[], Any]
) -> None:
    own = theirs()
    before = dict(vars(own))
    fast = comfy.vae.FastVAE.of(own)
    assert vars(own) == before
    stored = own.get_sd()
    mine = fast.get_sd()
    assert mine.keys() == stored.keys()
    assert all(mine[name].data_ptr() == stored[name].data_ptr() for name in stored)
    assert fast.patcher is not own.patcher
    assert isinstance(fast, comfy.sd.VAE)
    assert comfy.vae.FastVAE.of(fast) is fast


def test_accelerated_vae_describes_itself_as_comfyui_does(comfy: Comfy, theirs: Callable[[], Any]) -> None:
    own = theirs()
    fast = comfy.vae.FastVAE.of(own)
    assert fast.downscale_ratio[1:] == own.downscale_ratio[1:]
    assert fast.upscale_ratio[1:] == own.upscale_ratio[1:]
    assert [fast.downscale_ratio[0](frames) for frames in (1, 4, 5, 6, 9)] == [1, 1, 2, 2, 3]
    assert [fast.upscale_ratio[0](times) for times in (0, 1, 2, 3)] == [0, 1, 5, 9]


def test_memory_estimates_grow_with_the_clip_and_reach_comfyui(comfy: Comfy, theirs: Callable[[], Any]) -> None:
    fast = comfy.vae.FastVAE.of(theirs())
    small = fast.memory_used_encode((1, 3, 5, 32, 48), torch.float32)
    large = fast.memory_used_encode((1, 3, 81, 480, 832), torch.float32)
    assert small < large
    assert large > 81 * 480 * 832 * 12
    z = fast.latent_channels
    small = fast.memory_used_decode((1, z, 2, 2, 3), torch.float32)
    assert small < fast.memory_used_decode((1, z, 21, 30, 52), torch.float32)
    if not CHECKOUT:
        fast.decode(torch.zeros(1, z, 2, 2, 3))
        assert loaded[-1] == ([fast.patcher], small)


@pytest.mark.parametrize("sd", [{"pixel_space_vae": torch.tensor(1.0)}])
def test_vae_of_another_kind_is_refused_with_one_sentence(comfy: Comfy, sd: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match=r"^This VAE cannot be accelerated: it is no Wan VAE: .*; bypass this node"):
        comfy.vae.FastVAE.of(comfy.sd.VAE(sd=sd))


def test_invalid_vae_gives_comfyuis_own_error(comfy: Comfy) -> None:
    with pytest.raises(RuntimeError, match="VAE is invalid"):
        comfy.vae.FastVAE.of(comfy.sd.VAE(sd={"what": torch.zeros(1)}))


@pytest.mark.parametrize("source", ["nano", "file"])
def test_loaded_checkpoint_is_a_vae_of_comfyui(comfy: Comfy, ours: WanVAE, source: str, tmp_path: Path) -> None:
    expected = WanVAE.from_pretrained("nano") if source == "nano" else ours
    if source == "file":
        ours.save(tmp_path / "vae.safetensors")
    fast = comfy.vae.FastVAE.load(source if source == "nano" else tmp_path / "vae.safetensors", "fp32")
    side = expected.config.spatial_compression
    images = IMAGES[:5, : 2 * side, : 3 * side]
    video = images.movedim(-1, 0)[None] * 2 - 1
    latents = fast.encode(images)
    assert_same(latents, expected.posterior(video).mean)
    assert_same(fast.decode(latents)[0], (expected.decode(latents, raw=True)[0].movedim(0, -1) + 1) / 2)
    assert fast.decode_tiled(latents, **TILE).shape == (1, 5, 2 * side, 3 * side, 3)
    assert fast.spacial_compression_encode() == side if CHECKOUT else True
    assert fast.disable_offload


@pytest.mark.parametrize("calls", [OLD, NEW])
@pytest.mark.parametrize("preset", ["qwen-image-layered", "qwen-image-2.1"])
@pytest.mark.skipif(CHECKOUT is not None, reason="a checkout has its own way")
def test_vae_of_pictures_with_alpha_takes_those_without_it_as_opaque(
    comfy: Comfy, preset: str, calls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy.sd.VAE, "calls", calls)
    values = load_config(preset).to_dict() | {"encoder_width": 4, "decoder_width": 4}
    own = random_vae(VAEConfig(**values), torch.float32)
    own.save(tmp_path / "vae.safetensors")
    fast = comfy.vae.FastVAE.load(tmp_path / "vae.safetensors", "fp32")
    images_only, side = own.config.images_only, own.config.spatial_compression
    images = IMAGES[: 2 if images_only else 1, : 2 * side, : 3 * side]
    opaque = torch.cat([images, torch.ones_like(images[..., :1])], dim=3).movedim(-1, 1).unsqueeze(2) * 2 - 1
    expected = own.posterior(opaque).mean
    latents = fast.encode(images)
    assert_same(latents, expected[:, :, 0] if images_only else expected)
    assert (fast.latent_dim, fast.output_channels) == (2 if images_only else 3, 4)
    pictures = fast.decode(latents)
    assert pictures.shape == (*images.shape[:3], 4) if images_only else (1, 1, *images.shape[1:3], 4)


@pytest.mark.parametrize("preset", ["wan2.1", "qwen-image-layered"])
def test_pictures_of_one_channel_are_refused(preset: str) -> None:
    values = load_config(preset).to_dict() | {"encoder_width": 4, "decoder_width": 4}
    stage = FirstStageModel(random_vae(VAEConfig(**values), torch.float32), torch.device("cpu"), lambda device: 2**30)
    with pytest.raises(UserError, match=r"but this one is \(1, 1, 1, 16, 16\)"):
        stage.encode(torch.zeros(1, 1, 1, 16, 16))


def test_weights_of_an_accelerated_vae_can_be_saved_after_a_gpu_had_them(comfy: Comfy, tmp_path: Path) -> None:
    fast = comfy.vae.FastVAE.load("nano", "fp32")
    lay_out_weights(fast.network)  # as before the first pass on a GPU
    safetensors.torch.save_file(fast.get_sd(), tmp_path / "vae.safetensors")
    saved = safetensors.torch.load_file(tmp_path / "vae.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in fast.get_sd().items())


def test_memory_estimates_are_for_one_of_a_batch_as_comfyui_multiplies(comfy: Comfy, theirs: Callable[[], Any]) -> None:
    fast = comfy.vae.FastVAE.of(theirs())
    z = fast.latent_channels
    for estimate, shape in ((fast.memory_used_encode, (3, 1, 64, 64)), (fast.memory_used_decode, (z, 1, 8, 8))):
        assert estimate((16, *shape), torch.float32) == estimate((1, *shape), torch.float32)
