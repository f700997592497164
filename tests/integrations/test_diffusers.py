"""Real classes and pipelines of diffusers, tiny and random: accelerated ones give the same frames, or step aside."""

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_qwenimage, autoencoder_kl_wan

from wan_vae import UserError, WanVAE
from wan_vae.integrations.diffusers import FastAutoencoderKLWan, accelerate

TINY = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],  # diffusers' own methods always take four frames to a latent
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.5, 2.0, 1.0],
}
WAN22 = {**TINY, "decoder_base_dim": 6, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.rand(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def both_ways(vae: Any, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    latents = vae.encode(clip).latent_dist
    return torch.cat([latents.mean, latents.logvar]), vae.decode(latents.mode(), return_dict=False)[0]


def assert_same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def make(kind: Any = AutoencoderKLWan, **changes: object) -> Any:
    torch.manual_seed(0)
    values = {**TINY, **changes}
    if kind is not AutoencoderKLQwenImage:
        values |= {"scale_factor_spatial": 4}
    return kind(**values).eval()


def make_wan22() -> Any:
    torch.manual_seed(0)
    return AutoencoderKLWan(**WAN22, scale_factor_spatial=8).eval()


@pytest.mark.parametrize("build", [make, lambda: make(AutoencoderKLQwenImage), make_wan22])
def test_accelerate_gives_the_same_values_in_float64_and_float32(
    build: Callable[[], Any], clip: torch.Tensor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers rounds to float32 in its nearest-neighbor upsampling, which copies values and needs no rounding.
    for upsampling in (autoencoder_kl_wan.WanUpsample, autoencoder_kl_qwenimage.QwenImageUpsample):
        monkeypatch.setattr(upsampling, "forward", torch.nn.Upsample.forward)
    vae = build().double()
    expected = both_ways(vae, clip.double())
    handle = accelerate(vae)
    assert_same(both_ways(vae, clip.double()), expected, 1e-10)
    vae.float()
    assert_same(both_ways(vae, clip), tuple(x.float() for x in expected))
    handle.restore()
    assert not {"_encode", "_decode"} & vae.__dict__.keys()
    assert not caplog.records
    vae.double()
    assert all(torch.equal(one, other) for one, other in zip(both_ways(vae, clip.double()), expected, strict=True))


def test_accelerate_of_odd_lengths_leaves_out_what_diffusers_leaves_out(clip: torch.Tensor) -> None:
    vae = make()
    odd = torch.cat([clip, clip[:, :, :3]], dim=2)
    expected = both_ways(vae, odd)
    accelerate(vae)
    assert_same(both_ways(vae, odd), expected)


def test_accelerated_vae_is_copied_pickled_and_saved_like_any(clip: torch.Tensor, tmp_path: Path) -> None:
    vae = make()
    expected = both_ways(vae, clip)
    accelerate(vae)
    both_ways(vae, clip)
    copied, pickled = copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    for twin in (copied, pickled):
        assert twin._decode.__self__.vae is twin
        assert_same(both_ways(twin, clip), expected)
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKLWan.from_pretrained(tmp_path)
    assert type(loaded) is AutoencoderKLWan
    assert_same(both_ways(loaded, clip), both_ways(vae, clip))


def test_accelerated_vae_computes_with_changed_weights(clip: torch.Tensor) -> None:
    vae, other = make(), make()
    accelerate(vae)
    both_ways(vae, clip)
    with torch.no_grad():
        for module in (vae, other):
            module.decoder.conv_in.weight *= 1.5
    assert_same(both_ways(vae, clip), both_ways(other, clip))
    vae.decoder.conv_in.weight = torch.nn.Parameter(vae.decoder.conv_in.weight.detach() / 1.5)
    assert_same(both_ways(vae, clip), both_ways(make(), clip))


def test_accelerated_vae_with_tiling_gives_the_untiled_frames(clip: torch.Tensor) -> None:
    vae = make()
    expected = both_ways(vae, clip)
    accelerate(vae)
    vae.enable_tiling(8, 8, 4, 4)
    assert_same(both_ways(vae, clip), expected)
    vae.enable_slicing()
    assert_same(both_ways(vae, clip), expected)


def lora(vae: Any) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.scale = inner, torch.nn.Parameter(torch.ones(()), requires_grad=False)

        def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
            return self.inner(*inputs, **named) * self.scale

    vae.decoder.mid_block.attentions[0].proj = Wrapped(vae.decoder.mid_block.attentions[0].proj)


def sequential_offload(vae: Any) -> None:
    accelerate_library = pytest.importorskip("accelerate")
    accelerate_library.cpu_offload(vae, torch.device("cpu"))


def group_offload(vae: Any) -> None:
    device = torch.device("cpu")
    vae.enable_group_offload(device, device, offload_type="leaf_level")


def layerwise_casting(vae: Any) -> None:
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def hooked(vae: Any) -> None:
    vae.decoder.register_forward_hook(lambda module, inputs, output: output * 0.5)


@pytest.mark.parametrize(
    "change", [lora, sequential_offload, group_offload, layerwise_casting, hooked, lambda v: v.train()]
)
def test_accelerated_vae_that_cannot_be_stood_in_for_steps_aside_with_one_line(
    change: Callable[[Any], None], clip: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    vae, plain = make(), make()
    accelerate(vae)
    for module in (vae, plain):
        change(module)
    for _ in range(2):
        found, expected = both_ways(vae, clip), both_ways(plain, clip)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    ours = [record for record in caplog.records if record.name == "wan_vae"]
    assert [record.levelno for record in ours] == [logging.WARNING]
    assert "diffusers' own AutoencoderKLWan computes" in ours[0].message


def test_accelerated_vae_records_gradients_through_diffusers(clip: torch.Tensor) -> None:
    vae = make()
    accelerate(vae)
    vae.decode(vae.encode(clip).latent_dist.mode()).sample.mean().backward()
    assert all(parameter.grad is not None for parameter in vae.decoder.parameters())
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_accelerate_of_something_else_is_an_error() -> None:
    with pytest.raises(UserError, match="Linear is no VAE"):
        accelerate(torch.nn.Linear(1, 1))


def test_fast_class_reads_and_writes_the_files_of_its_parent(clip: torch.Tensor, tmp_path: Path) -> None:
    vae = make()
    vae.save_pretrained(tmp_path / "theirs")
    fast = FastAutoencoderKLWan.from_pretrained(tmp_path / "theirs")
    assert_same(both_ways(fast, clip), both_ways(vae, clip))
    fast.save_pretrained(tmp_path / "ours")
    assert_same(both_ways(AutoencoderKLWan.from_pretrained(tmp_path / "ours"), clip), both_ways(vae, clip))
    assert WanVAE.from_pretrained(tmp_path / "ours").config == WanVAE.from_pretrained(tmp_path / "theirs").config
    assert WanVAE.from_pretrained(tmp_path / "ours").config.latent_mean == tuple(TINY["latents_mean"])


def test_fast_class_with_layers_wrapped_before_its_first_call_steps_aside_with_one_line(
    clip: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    fast, plain = make(FastAutoencoderKLWan), make()
    for module in (fast, plain):
        lora(module)
    for _ in range(2):
        assert_same(both_ways(fast, clip), both_ways(plain, clip), tolerance=0)
    (record,) = (record for record in caplog.records if record.name == "wan_vae")
    assert "diffusers' own AutoencoderKLWan computes" in record.message
    fast.decoder.mid_block.attentions[0].proj = fast.decoder.mid_block.attentions[0].proj.inner
    both_ways(fast, clip)
    assert fast._made is not None
    assert fast._made._network is not None


def test_from_diffusers_and_back_share_the_parameters(clip: torch.Tensor) -> None:
    theirs = make().requires_grad_(False)
    ours = WanVAE.from_diffusers(theirs)
    back = ours.to_diffusers()
    pointers = [{p.data_ptr() for p in module.parameters()} for module in (theirs, ours, back)]
    assert pointers[0] == pointers[1] == pointers[2]
    assert not any(p.requires_grad for module in (theirs, ours, back) for p in module.parameters())
    assert not ours.training
    assert_same(both_ways(back, clip), both_ways(theirs, clip))


def test_decode_of_raw_latents_equals_that_of_normalized_ones() -> None:
    ours = WanVAE.from_diffusers(make().double())
    raw = torch.randn(1, 4, 3, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = ours.decode(ours.normalize(raw))
        torch.testing.assert_close(ours.decode(raw, raw=True), expected, rtol=0, atol=1e-12)
        one = raw[:, :, :1]
        torch.testing.assert_close(ours.decode(one, raw=True), ours.decode(ours.normalize(one)), rtol=0, atol=1e-12)
