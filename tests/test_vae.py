"""The public class: what it takes, what it refuses, and what it says then."""

import dataclasses
import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.checkpoints.variants import STANDARD, native
from tests.helpers import random_latents, random_vae, random_video, relative_difference, small_config
from wan_vae import UserError, WanVAE
from wan_vae.checkpoints import load_checkpoint, weights_digest
from wan_vae.checkpoints.files import DIFFUSERS_FILE
from wan_vae.config import preset_names
from wan_vae.inference.stream import EncodeStream
from wan_vae.model.halo import Halo
from wan_vae.validation import Dtypes, best_device


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return random_vae(small_config(temporal_downsample=(True, True), width_multipliers=(1, 1, 1)))


def test_shapes(vae: WanVAE) -> None:
    latents = vae.encode(random_video(9, 8, 12, batch=2))
    assert latents.shape == (2, 3, 3, 2, 3)
    assert vae.decode(latents).shape == (2, 3, 9, 8, 12)


def test_encode_is_the_normalized_mean(vae: WanVAE) -> None:
    video = random_video(5, 4, 8)
    posterior = vae.posterior(video)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latent_mean, vae.config.latent_std))
    torch.testing.assert_close(vae.encode(video), (posterior.mean - mean) / std)
    torch.testing.assert_close(vae.denormalize(vae.encode(video)), posterior.mean)


def test_decoded_values_are_clamped(vae: WanVAE) -> None:
    loud = random_vae(vae.config)
    loud.decoder.head.conv.weight.mul_(100)
    decoded = loud.decode(random_latents(vae.config, 2, 2, 2))
    assert (decoded.min(), decoded.max()) == (-1, 1)


def test_video_in_another_precision_is_converted() -> None:
    vae = random_vae(small_config(), torch.float32)
    assert vae.encode(random_video(3, 4, 4)).dtype == torch.float32


def test_forward_samples_on_request(vae: WanVAE) -> None:
    video = random_video(5, 4, 4)
    first, posterior = vae(video, sample=True, generator=torch.Generator().manual_seed(3))
    again, _ = vae(video, sample=True, generator=torch.Generator().manual_seed(3))
    mode, _ = vae(video)
    assert torch.equal(first, again)
    assert not torch.equal(first, mode)
    torch.testing.assert_close(mode, vae.decode(vae.normalize(posterior.mode())))


def test_a_fresh_attention_block_is_the_identity() -> None:
    block = WanVAE(small_config()).encoder.middle.attention
    x = torch.randn(1, 8, 2, 3, 3)
    torch.testing.assert_close(block(x, Halo()), x + block.proj.bias.view(1, -1, 1, 1, 1))


def test_a_stream_that_ends_early_says_what_would_fit(vae: WanVAE) -> None:
    with pytest.raises(UserError, match="ended after 8 frames; 5 or 9 would fit"):
        list(vae.encode_stream(random_video(8, 4, 4).split(3, dim=2)))


@pytest.mark.parametrize("stream", [WanVAE.encode_stream, WanVAE.decode_stream])
def test_a_stream_of_nothing_is_refused(vae: WanVAE, stream: object) -> None:
    with pytest.raises(UserError, match="without a single frame"):
        list(stream(vae, []))


def test_a_pass_computes_at_least_one_latent(vae: WanVAE) -> None:
    with pytest.raises(UserError, match="latents_per_pass is 0"):
        vae.encode(random_video(5, 4, 4), latents_per_pass=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("frames", [1, 5])
def test_latents_are_contiguous_however_the_video_is_stored(vae: WanVAE, frames: int, dtype: torch.dtype) -> None:
    vae, video = deepcopy(vae).to(dtype), random_video(frames, 8, 8, dtype=dtype)
    for stored in (torch.contiguous_format, torch.channels_last_3d):
        x = video.contiguous(memory_format=stored)
        assert vae.encode(x).is_contiguous()
        assert all(part.is_contiguous() for part in vae.encode_stream([x]))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds(name: str) -> None:
    with torch.device("meta"):
        vae = WanVAE.from_config(name)
    assert vae.config.spatial_compression == (16 if name in ("wan2.2", "qwen-image-2.1") else 8)


def test_the_size_of_the_published_models() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(parameter.numel() for parameter in WanVAE.from_config(name).parameters())
            for name in ("wan2.1", "wan2.2", "qwen-image-layered", "qwen-image-2.1")
        }
    assert sizes == {
        "wan2.1": 126_892_531,
        "wan2.2": 704_688_668,
        "qwen-image-layered": 126_897_716,
        "qwen-image-2.1": 337_740_404,
    }


def test_a_config_can_be_changed_by_name() -> None:
    assert WanVAE.from_config("tiny", block="dense", dense_growth=4).config.dense_growth == 4
    with pytest.raises(UserError, match="block is 'vgg'; the kinds are wan, resnet"):
        WanVAE.from_config("tiny", block="vgg")


def test_loaded_weights_are_frozen_and_in_eval_mode(vae: WanVAE) -> None:
    loaded = WanVAE.from_weights(vae.config, vae.state_dict())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.encode(random_video(5, 4, 4)).requires_grad


def test_in_training_mode_the_clip_passes_at_once() -> None:
    vae = random_vae(small_config(block="resnet")).train()
    video = random_video(5, 4, 6)
    with torch.no_grad():
        whole = random_vae(vae.config).train().moments(video, Halo())
        torch.testing.assert_close(vae.posterior(video).mean, whole.chunk(2, dim=1)[0])


def test_weights_of_mixed_precision_are_promoted(vae: WanVAE) -> None:
    weights = {name: weight.to(torch.bfloat16) for name, weight in vae.state_dict().items()}
    weights["quant_conv.bias"] = weights["quant_conv.bias"].to(torch.float32)
    loaded = WanVAE.from_weights(vae.config, weights)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_each_half_computes_in_its_own_dtype() -> None:
    config = small_config()
    vae, wide = random_vae(config), random_vae(config)
    video = random_video(5, 8, 16)
    assert vae.set_dtypes(encoder=torch.float64, decoder=torch.float32) is vae
    latents = vae.encode(video)
    torch.testing.assert_close(latents, wide.encode(video), rtol=0, atol=0)
    decoded = vae.decode(latents)
    assert (vae.dtype, decoded.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(decoded, wide.decode(latents).float())


def test_a_stream_of_changing_sizes_is_refused(vae: WanVAE) -> None:
    with pytest.raises(UserError, match=r"\(1, 3, 2, 8, 8\), which in more than time differs"):
        list(vae.encode_stream([random_video(3, 4, 8), random_video(2, 8, 8)]))


def test_streams_record_no_gradients(vae: WanVAE) -> None:
    trainable = random_vae(vae.config).requires_grad_(True)
    streamed = torch.cat(
        list(trainable.decode_stream(trainable.encode_stream(random_video(5, 4, 8).split(2, dim=2)))), 2
    )
    assert not streamed.requires_grad
    assert torch.is_grad_enabled()


def test_from_pretrained_auto_is_what_the_device_is_fast_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    for encoder, decoder in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        chosen = Dtypes(encoder, decoder)
        monkeypatch.setattr("wan_vae.vae.choose_dtypes", lambda dtype, device, chosen=chosen: chosen)
        vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors", device="auto", dtype="auto")
        assert (vae.dtype, vae.decoder_dtype, vae.device) == (*chosen, best_device())
        assert vae.digest() == load_checkpoint(tmp_path / "vae.safetensors").digest()


def test_from_weights_leaves_the_gradients_of_the_given_weights() -> None:
    trained = random_vae(small_config()).requires_grad_(True)
    made = WanVAE.from_weights(trained.config, trained.state_dict(keep_vars=True))
    assert all(weight.requires_grad for weight in trained.parameters())
    assert not any(weight.requires_grad for weight in made.parameters())
    assert made.quant_conv.weight.data_ptr() == trained.quant_conv.weight.data_ptr()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_defaults_of_torch_do_not_matter(default: torch.dtype) -> None:
    vae = random_vae(small_config()).to(torch.float32)
    video = random_video(5, 8, 16, dtype=torch.float32)
    expected = vae.decode(vae.encode(video))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        with torch.device("meta"):
            result = vae.decode(vae.encode(video))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(result, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace`:FutureWarning")
def test_autocast_and_tracing_see_every_step() -> None:
    vae = random_vae(small_config()).to(torch.float32)
    video = random_video(5, 8, 16, dtype=torch.float32)
    with torch.no_grad():
        expected = vae.encode(video)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_difference(vae.encode(video).float(), expected) < 0.1
            vae.decode(expected)
        traced = torch.jit.trace(lambda clip: vae.encode(clip), video, check_trace=False)
        assert relative_difference(traced(video), expected) < 1e-5


def test_a_stream_begun_in_inference_mode_goes_on_outside_of_it(vae: WanVAE) -> None:
    latents = random_latents(vae.config, 4, 2, 3)
    stream = vae.decode_stream(latents.split(1, dim=2))
    with torch.inference_mode():
        parts = [next(stream), next(stream)]
    parts += list(stream)
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(latents))


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_call_with_input_on_another_device_raises_one_sentence(call: str) -> None:
    vae = random_vae(small_config())
    x = random_video(1, 4, 4) if call == "encode" else random_latents(vae.config, 1, 2, 2)
    with pytest.raises(UserError, match=r"The input is on meta, but the model on cpu; move it"):
        getattr(vae, call)(x.to("meta"))


def test_digest_of_loaded_weights_is_that_of_the_file(tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    expected = load_checkpoint(tmp_path / "vae.safetensors").digest()
    for dtype in (None, "float64", torch.bfloat16):
        assert WanVAE.from_pretrained(tmp_path / "vae.safetensors", dtype=dtype).digest() == expected
    vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    vae.quant_conv.weight.add_(1)
    assert vae.digest() not in (expected, random_vae(small_config(), torch.float32).digest())


def test_digest_after_the_file_changed_is_that_of_the_weights_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    random_vae(small_config(), torch.float32).save(path)
    vae = WanVAE.from_pretrained(path, dtype="bfloat16")
    assert vae.digest() == load_checkpoint(path).digest()
    random_vae(small_config(), torch.float32, seed=1).save(path)
    assert vae.digest() == weights_digest(vae.state_dict()) != load_checkpoint(path).digest()


@pytest.mark.parametrize("converted", [False, True])
def test_digest_is_that_of_weights_with_a_merged_adapter(converted: bool, tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    before = vae.digest()
    if converted:
        vae.to(torch.bfloat16)
        assert vae.digest() == before
    vae.decoder.conv_in.weight.data += 0.25
    assert vae.digest() != before


@pytest.mark.parametrize("tap", [(0, 0, 0), (0, 1, 2), (2, 1, 1), (2, 2, 2)])
def test_digest_tells_of_a_write_to_one_tap(tap: tuple[int, int, int], tmp_path: Path) -> None:
    random_vae(small_config(encoder_width=96), torch.float32).save(tmp_path / "vae.safetensors")
    vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    before = vae.digest()
    vae.encoder.middle.block1.conv1.weight.data[(..., *tap)] += 0.25
    assert vae.digest() != before


@pytest.mark.parametrize("copy_of", [deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_digest_of_a_copy_is_that_of_the_model(copy_of: Callable[[WanVAE], WanVAE], tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    before = vae.digest()
    found = copy_of(vae)
    assert found.digest() == vae.digest() == before
    found.decoder.conv_in.weight.data += 0.25
    assert found.digest() != before
    assert copy_of(found).digest() == found.digest() == weights_digest(found.state_dict())
    assert vae.digest() == before


def test_digest_of_weights_that_were_rounded_is_their_own(tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    before = vae.digest()
    assert vae.to(torch.bfloat16).digest() == before
    assert vae.to(torch.float32).digest() == weights_digest(vae.state_dict()) != before


def test_from_pretrained_on_the_meta_device_is_for_plans(tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    vae = WanVAE.from_pretrained(tmp_path / "vae.safetensors", device="meta")
    assert vae.plan("decode", frames=5, height=8, width=8, memory="1GiB", device="cpu").peak > 0


def test_digest_of_a_folder_is_found_by_its_config_and_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = random_vae(small_config(**STANDARD | {"blocks_per_level": 1}), torch.float32)
    folder = tmp_path / "folder"
    vae.save(folder, layout="diffusers")
    (folder / DIFFUSERS_FILE).unlink()
    save_file(native(vae), folder / "vae.safetensors")  # only the config.json tells how many blocks there are
    monkeypatch.chdir(tmp_path)
    loaded = WanVAE.from_pretrained("folder", dtype="bfloat16")
    monkeypatch.chdir(folder)
    assert loaded.digest() == vae.digest()


@pytest.mark.parametrize("kind", ["wan", "resnet"])
def test_digest_is_that_of_weights_that_took_the_place_of_loaded_ones(kind: str, tmp_path: Path) -> None:
    config = small_config(block=kind)
    random_vae(config, torch.float32).save(tmp_path / "vae.safetensors")
    other = random_vae(config, torch.float32, seed=1)
    assigned = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    assigned.load_state_dict(other.state_dict(), assign=True)
    assert assigned.digest() == other.digest()
    loaded = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    before, loaded.decoder = loaded.digest(), other.decoder
    assert loaded.digest() not in (before, other.digest())
    counted = WanVAE.from_pretrained(tmp_path / "vae.safetensors")
    for buffer in counted.buffers():
        buffer.add_(1)
    assert (counted.digest() == before) == (not list(counted.buffers()))


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_call_carries_tangents_of_forward_mode_differentiation(call: str) -> None:
    vae = random_vae(small_config())
    x = random_video(5, 4, 4) if call == "encode" else 0.01 * random_latents(vae.config, 2, 2, 2)
    tangent = torch.ones_like(x)
    # PyTorch's fused attention has no tangents, and says so.
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        found = forward_ad.unpack_dual(getattr(vae, call)(forward_ad.make_dual(x, tangent))).tangent
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        vae.requires_grad_(True)
        result = forward_ad.unpack_dual(getattr(vae, call)(forward_ad.make_dual(x, tangent)))
        vae.requires_grad_(False)
    assert not result.primal.requires_grad
    torch.testing.assert_close(result.tangent, found)
    step = 1e-6
    expected = (getattr(vae, call)(x + step * tangent) - getattr(vae, call)(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_forward_of_halves_with_dtypes_of_their_own_is_that_of_decode() -> None:
    vae = random_vae(small_config(), torch.float32).set_dtypes(encoder="float32", decoder="bfloat16")
    video = random_video(3, 8, 8, dtype=torch.float32)
    reconstruction, posterior = vae(video)
    assert reconstruction.dtype == torch.bfloat16
    decoded = vae.decode(posterior.mean, raw=True)
    torch.testing.assert_close(reconstruction.clamp(-1, 1), decoded, rtol=0, atol=1e-2)


def test_from_pretrained_with_dtype_as_text_converts(tmp_path: Path) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    assert WanVAE.from_pretrained(tmp_path / "vae.safetensors", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UserError, match="'int8'"):
        WanVAE.from_pretrained(tmp_path / "vae.safetensors", dtype="int8")


def test_decode_of_raw_latents_as_normalized_ones_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(small_config(), latent_mean=(0.3, -0.9, 1.5), latent_std=(2.8, 1.2, 3.0))
    vae = random_vae(config, torch.float32)
    latents = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    raw = vae.denormalize(latents)
    with torch.no_grad():
        random_vae(config, torch.float32).decode(latents)
        vae.decode(raw, raw=True)
        assert not caplog.records
        vae.decode(raw)
        vae.decode(raw)
    assert [record.message for record in caplog.records if "look raw" in record.message] == [caplog.records[0].message]


def test_a_model_of_rgba_is_the_same_in_streams_tiles_and_at_once() -> None:
    vae = random_vae(small_config(image_channels=4))
    video = random_video(5, 64, 96, channels=4)
    latents = vae.encode(video)
    pieces = list(vae.encode_stream(video.split([1, 2, 2], dim=2)))
    torch.testing.assert_close(torch.cat(pieces, dim=2), latents, rtol=0, atol=1e-12)
    decoded = vae.decode(latents)
    assert decoded.shape == video.shape
    whole = vae.plan("decode", frames=5, height=64, width=96, memory="1GiB", latents_per_pass=1)
    tiled = vae.plan("decode", frames=5, height=64, width=96, memory=whole.peak * 9 // 10)
    assert tiled.tiling is not None
    torch.testing.assert_close(vae.decode(latents, memory=tiled.budget), decoded, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def picture_vae() -> WanVAE:
    return random_vae(small_config(image_channels=4, images_only=True, level_shortcuts=True, width_multipliers=(1, 1)))


def test_a_model_of_single_pictures_takes_batches_streams_and_budgets(picture_vae: WanVAE) -> None:
    pictures = random_video(1, 16, 24, channels=4, batch=2)
    latents = picture_vae.encode(pictures)
    assert latents.shape == (2, 3, 1, 8, 12)
    for index, picture in enumerate(pictures.split(1)):
        alone = next(iter(picture_vae.encode_stream([picture], memory="1GiB")))
        torch.testing.assert_close(alone, latents[index : index + 1], rtol=0, atol=1e-12)
    assert picture_vae.decode(latents, memory="1GiB").shape == pictures.shape
    assert picture_vae.plan("encode", frames=1, height=16, width=24, memory="1GiB", streaming=True).peak > 0


def test_a_model_of_single_pictures_refuses_clips(picture_vae: WanVAE) -> None:
    with pytest.raises(UserError, match="encodes single pictures, not 5 frames; put several in a batch"):
        picture_vae.encode(random_video(5, 16, 16, channels=4))
    with pytest.raises(UserError, match="decodes single pictures, not 2 latents"):
        picture_vae.decode(random_latents(picture_vae.config, 2, 4, 4))
    with EncodeStream(picture_vae) as stream:
        stream.push(random_video(1, 16, 16, channels=4))
        with pytest.raises(UserError, match="this stream has had its one"):
            stream.push(random_video(1, 16, 16, channels=4))
    with pytest.raises(UserError, match=r"\(B, 4, T, H, W\), with alpha as the last channel, but this one is \(1, 3"):
        picture_vae.encode(random_video(1, 16, 16))
