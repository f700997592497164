"""What the node pack computes, without ComfyUI: clips of any size, and latents files."""

from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.variants import native, standard_vae
from tests.helpers import random_vae, small_config
from wan_vae import LatentsError, UserError, WanVAE, encode_file
from wan_vae.inference.planner import BudgetError
from wan_vae.integrations.comfyui import (
    CLIP_KEY,
    ClipFacts,
    FirstStageModel,
    clip_facts,
    decode_images,
    encode_images,
    frame_rate,
    load_latent,
    network_from_weights,
    save_latent,
)
from wan_vae.io import load_latents, open_clip, write_clip

CPU = torch.device("cpu")
AUDIO = {"waveform": torch.zeros(1, 2, 100), "sample_rate": 48000}


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    """Two frames and two by two pixels to a latent, in float32."""
    return random_vae(small_config(), torch.float32)


def random_images(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(2))


@settings(max_examples=5)
@given(frames=st.integers(1, 7), height=st.integers(1, 9), width=st.integers(1, 9))
def test_clip_of_any_size_comes_back_in_its_size(vae: WanVAE, frames: int, height: int, width: int) -> None:
    images = random_images(frames, height, width)
    latent = encode_images(vae, images, fps=Fraction(24), audio=AUDIO)
    assert latent["samples"].shape == (1, 3, 1 + frames // 2, -(-height // 2), -(-width // 2))
    assert latent[CLIP_KEY] == ClipFacts(frames, height, width, Fraction(24), AUDIO)
    decoded = decode_images(vae, latent)
    assert decoded.shape == (frames, height, width, 3)
    whole = decode_images(vae, {"samples": latent["samples"]})
    assert torch.equal(decoded, whole[:frames, :height, :width])


def test_encode_images_gives_raw_latents_of_the_padded_clip(vae: WanVAE) -> None:
    images = random_images(4, 5, 6)
    progress: list[tuple[int, int]] = []
    samples = encode_images(vae, images, progress=lambda *at: progress.append(at))["samples"]
    padded = torch.cat([images, images[:, -1:]], dim=1)
    video = torch.cat([padded, padded[-1:]]).movedim(-1, 0)[None] * 2 - 1
    torch.testing.assert_close(samples, vae.posterior(video).mean, rtol=0, atol=1e-5)
    assert progress[-1] == (4, 4)


def test_decode_images_gives_pictures_between_0_and_1(vae: WanVAE) -> None:
    raw = torch.randn(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    progress: list[tuple[int, int]] = []
    images = decode_images(vae, {"samples": raw}, progress=lambda *at: progress.append(at))
    expected = (vae.decode(raw, raw=True).permute(0, 2, 3, 4, 1).flatten(0, 1) + 1) / 2
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert progress[-1] == (10, 10)


def test_images_within_a_budget_are_the_same(vae: WanVAE) -> None:
    images, least = random_images(5, 128, 128), {}
    for direction in ("encode", "decode"):
        plan = partial(vae.plan, direction, frames=1, height=128, width=128, streaming=True)
        with pytest.raises(BudgetError) as error:
            plan(memory=1)
        least[direction] = error.value.smallest
        assert plan(memory=least[direction]).tiling is not None
    encoding, decoding = least["encode"], least["decode"]
    free, tight = encode_images(vae, images), encode_images(vae, images, memory=encoding)
    torch.testing.assert_close(tight["samples"], free["samples"], rtol=0, atol=1e-5)
    torch.testing.assert_close(decode_images(vae, tight, memory=decoding), decode_images(vae, free), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="too little to encode"):
        encode_images(vae, images, memory="1MiB")


def test_a_batch_decodes_in_the_memory_of_one_clip(vae: WanVAE) -> None:
    raw = torch.randn(3, 3, 2, 32, 32, generator=torch.Generator().manual_seed(4))
    plan = partial(vae.plan, "decode", frames=3, height=64, width=64, streaming=True)
    with pytest.raises(BudgetError) as error:
        plan(memory=1)
    memory = error.value.smallest
    with pytest.raises(BudgetError):
        plan(batch=3, memory=memory)
    tight = decode_images(vae, {"samples": raw}, memory=memory)
    torch.testing.assert_close(tight, decode_images(vae, {"samples": raw}), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 4, 3), (2, 4, 4, 1)])
def test_encode_images_of_other_shapes_is_an_error(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"a clip is \(frames, height, width, 3\)"):
        encode_images(vae, torch.zeros(shape))


def test_encode_images_leaves_out_transparency_with_one_notice(vae: WanVAE, caplog: pytest.LogCaptureFixture) -> None:
    images = random_images(3, 4, 4)
    encode_images(vae, torch.cat([images, torch.ones_like(images[..., :1])], dim=-1))
    assert not caplog.records
    seen = encode_images(vae, torch.cat([images, images[..., :1]], dim=-1))
    assert torch.equal(seen["samples"], encode_images(vae, images)["samples"])
    assert [record.message for record in caplog.records] == [
        "The clip has transparency, which latents do not hold; it is left out."
    ]


def test_images_of_a_network_with_alpha_have_it_and_are_opaque_where_they_had_none() -> None:
    network = random_vae(small_config(image_channels=4))
    images = random_images(3, 4, 6)
    opaque = torch.cat([images, torch.ones_like(images[..., :1])], dim=-1)
    latent = encode_images(network, opaque)
    assert torch.equal(encode_images(network, images)["samples"], latent["samples"])
    assert not torch.equal(encode_images(network, opaque * 0.5)["samples"], latent["samples"])
    assert decode_images(network, latent).shape == (3, 4, 6, 4)


def test_latents_of_another_model_are_an_error(vae: WanVAE) -> None:
    with pytest.raises(UserError, match=r"\(1, 16, 2, 4, 4\); this VAE's are \(B, 3, t, h, w\)"):
        decode_images(vae, {"samples": torch.zeros(1, 16, 2, 4, 4)})


def test_clip_facts_of_latents_that_changed_size_keep_rate_and_sound(vae: WanVAE) -> None:
    latent = encode_images(vae, random_images(3, 5, 5), fps=Fraction(24), audio=AUDIO)
    latent["samples"] = torch.zeros(1, 3, 4, 6, 6)
    assert clip_facts(vae, latent) == ClipFacts(7, 12, 12, Fraction(24), AUDIO)
    assert clip_facts(vae, {"samples": torch.zeros(1, 3, 4, 4)}) == ClipFacts(1, 8, 8)


def test_frame_rate_is_the_given_one_else_the_clips_else_16() -> None:
    clip = ClipFacts(1, 1, 1, Fraction(24))
    assert frame_rate(29.97, clip) == Fraction(2997, 100)
    assert frame_rate(0, clip) == 24
    assert frame_rate(0, ClipFacts(1, 1, 1)) == 16


@pytest.mark.parametrize("rate", [Fraction(29.97), 29.97, Fraction(30000, 1001)])
def test_rates_of_floats_can_be_saved(vae: WanVAE, tmp_path: Path, rate: Fraction | float) -> None:
    latent = encode_images(vae, random_images(1, 4, 4), fps=rate)
    save_latent(vae, latent, [tmp_path / "a.safetensors"])
    assert load_latent(tmp_path / "a.safetensors")[1] == (
        rate if rate == Fraction(30000, 1001) else Fraction(2997, 100)
    )


def test_saved_latents_are_normalized_and_loaded_ones_raw(vae: WanVAE, tmp_path: Path) -> None:
    latent = encode_images(vae, random_images(4, 5, 6), fps=Fraction(24))
    path = tmp_path / "a.safetensors"
    save_latent(vae, latent, [path])
    normalized, info = load_latents(path)
    torch.testing.assert_close(normalized, vae.normalize(latent["samples"]), rtol=0, atol=0)
    assert (info.frames, info.width, info.height, info.fps) == (4, 6, 5, 24)
    assert (info.config, info.checkpoint) == (vae.config, vae.digest())
    loaded, fps = load_latent(path)
    torch.testing.assert_close(loaded["samples"], latent["samples"], rtol=0, atol=1e-5)
    assert loaded[CLIP_KEY] == ClipFacts(4, 5, 6, Fraction(24))
    assert fps == 24


def test_save_latent_writes_a_file_for_each_clip_of_a_batch(vae: WanVAE, tmp_path: Path) -> None:
    samples = torch.randn(2, 3, 2, 4, 4)
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_latent(vae, {"samples": samples}, paths, fps=30)
    for index, path in enumerate(paths):
        loaded, fps = load_latent(path)
        torch.testing.assert_close(loaded["samples"][0], samples[index], rtol=0, atol=1e-5)
        assert fps == 30


def test_save_latent_tells_what_a_file_does_not_hold(
    vae: WanVAE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latent = encode_images(vae, random_images(3, 4, 4), audio=AUDIO)
    save_latent(vae, latent | {"noise_mask": torch.ones(1)}, [tmp_path / "a.safetensors"])
    assert [record.message for record in caplog.records] == [
        "The latents come with audio and a noise mask, which a latents file does not hold."
    ]


def test_save_latent_of_nan_leaves_nothing(vae: WanVAE, tmp_path: Path) -> None:
    with pytest.raises(LatentsError, match="NaN"):
        save_latent(vae, {"samples": torch.full((1, 3, 1, 4, 4), torch.nan)}, [tmp_path / "a.safetensors"])
    assert not list(tmp_path.iterdir())


def test_latents_file_of_the_command_line_decodes_to_its_clip(tmp_path: Path) -> None:
    vae = WanVAE.from_pretrained("nano")
    clip = tmp_path / "clip.mkv"
    write_clip(clip, random_images(6, 36, 52).movedim(-1, 0) * 2 - 1, fps=12, lossless=True)
    encode_file(clip, tmp_path / "l.safetensors", vae)
    loaded, fps = load_latent(tmp_path / "l.safetensors")
    assert fps == 12
    with open_clip(clip) as source:
        (frames,) = source.chunks(6)
    encoded = encode_images(vae, torch.from_numpy(frames) / 255)
    torch.testing.assert_close(loaded["samples"], encoded["samples"], rtol=0, atol=1e-4)
    assert decode_images(vae, loaded).shape == (6, 36, 52, 3)


def test_first_stage_of_single_pictures_has_no_time() -> None:
    vae = standard_vae()
    stage = FirstStageModel(vae, CPU, lambda device: 0)
    picture = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = stage.encode(picture)
    assert torch.equal(latents, vae.posterior(picture.unsqueeze(2)).mean.squeeze(2))
    assert stage.decode(latents).shape == picture.shape
    assert stage.encode_memory(picture.shape, torch.float32) == stage.encode_memory((2, 3, 1, 16, 24), torch.float32)


def test_first_stage_on_a_device_that_does_not_tell_takes_comfyuis_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_vae.integrations.comfyui.reports_free_memory", lambda device: False)
    asked: list[torch.device] = []
    stage = FirstStageModel(standard_vae(), CPU, lambda device: asked.append(device) or 2**20)
    with pytest.raises(UserError, match=r"819\.2KiB of memory is too little"):
        stage.decode(torch.zeros(1, 3, 2, 4, 4))
    assert asked == [CPU]


def test_first_stage_brings_along_what_comfyui_left_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = standard_vae()
    latents = torch.randn(1, 3, 2, 2, 2)
    expected = vae.decode(latents, raw=True)
    weights = dict(vae.decoder.state_dict())
    vae.decoder.to("meta")

    def bring(device: torch.device) -> None:
        vae.decoder.load_state_dict(weights, assign=True)
        vae.requires_grad_(False)

    monkeypatch.setattr(vae, "to", bring)
    assert torch.equal(FirstStageModel(vae, CPU, lambda device: 0).decode(latents), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_network_from_weights_shares_them_where_the_dtype_is_theirs(dtype: torch.dtype) -> None:
    weights = native(standard_vae())
    network = network_from_weights(weights, dtype)
    pointers = {weight.data_ptr() for weight in weights.values()}
    shared = [parameter.data_ptr() in pointers for parameter in network.parameters()]
    assert all(shared) if dtype is torch.float32 else not any(shared)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}


def test_network_from_weights_of_part_of_a_vae_is_an_error() -> None:
    weights = native(standard_vae())
    del weights["decoder.middle.0.residual.2.weight"]
    with pytest.raises(UserError, match=r"cannot be accelerated: Of \d+ weights, .* is missing.*; bypass this node"):
        network_from_weights(weights)


def test_network_from_weights_of_an_upscaling_decoder_names_the_node_that_takes_it() -> None:
    with pytest.raises(UserError, match="use the node 'Wan VAE: load'"):
        network_from_weights(native(standard_vae(output_upscale=2)))
