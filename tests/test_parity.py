"""The same numbers as diffusers' AutoencoderKLWan on the same weights, through files in each layout."""

import os
from inspect import signature
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import diffusers_vae, random_latents, random_video, relative_difference, small_config
from wan_vae import VAEConfig, WanVAE
from wan_vae.checkpoints.detect import config_to_diffusers
from wan_vae.config import load_config

pytest.importorskip("diffusers")

STYLES = {
    "2.1": {"width_multipliers": (1, 2, 4, 4), "temporal_downsample": (False, True, True), "level_shortcuts": False},
    "2.2": {"width_multipliers": (1, 2, 4, 4), "temporal_downsample": (False, True, True), "level_shortcuts": True},
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def check_parity(
    theirs: torch.nn.Module, ours: WanVAE, dtype: torch.dtype, latents: int, size: tuple[int, int]
) -> None:
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    config = ours.config
    height, width = (side * config.spatial_compression for side in size)
    frames = 1 + config.temporal_compression * (latents - 1)
    video = random_video(frames, height, width, channels=config.image_channels, dtype=dtype)
    with torch.no_grad():
        expected, posterior = theirs.encode(video).latent_dist, ours.posterior(video)
        assert relative_difference(posterior.mean, expected.mean) <= TOLERANCE[dtype]
        assert relative_difference(posterior.logvar, expected.logvar) <= TOLERANCE[dtype]
        raw = ours.denormalize(random_latents(config, latents, *size, dtype=dtype))
        decoded = theirs.decode(raw).sample
        assert decoded.abs().max() < 1, "the clamp would hide differences"
        assert relative_difference(ours.decode(ours.normalize(raw)), decoded) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["wan", "diffusers"])
@pytest.mark.parametrize(
    "changes",
    [
        STYLES["2.1"],
        STYLES["2.2"] | {"patch_size": 2},
        STYLES["2.1"] | {"blocks_per_level": 2, "temporal_downsample": (True, False, True)},
        STYLES["2.1"] | {"output_upscale": 2},
    ],
)
def test_small_models(changes: dict[str, object], layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = small_config(**changes)
    theirs = diffusers_vae(config)
    theirs.save_pretrained(tmp_path / "theirs")
    WanVAE.from_pretrained(tmp_path / "theirs").save(tmp_path / "ours.safetensors", layout=layout)
    ours = WanVAE.from_pretrained(tmp_path / "ours.safetensors")
    assert config_to_diffusers(ours.config) == config_to_diffusers(config)
    if config.output_upscale == 1:
        check_parity(theirs, ours, dtype, latents=3, size=(2, 3))
    else:
        check_upscaling(theirs, ours, dtype)


RGBA = {
    "AutoencoderKLQwenImage": STYLES["2.1"] | {"image_channels": 4, "decoder_width": 4},
    "AutoencoderKLQwenImage21": {
        "width_multipliers": (1, 2, 4, 8, 8),
        "temporal_downsample": (False, True, True, True),
        "level_shortcuts": True,
        "image_channels": 4,
        "images_only": True,
    },
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["wan", "diffusers"])
@pytest.mark.parametrize("kind", RGBA)
def test_models_with_alpha(kind: str, layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    import diffusers

    present = getattr(diffusers, kind, None)
    if present is None or not {"input_channels", "in_channels"} & signature(present.__init__).parameters.keys():
        pytest.skip(f"this diffusers has no {kind} of four channels")
    config = small_config(**RGBA[kind])
    theirs = diffusers_vae(config)
    assert type(theirs).__name__ == kind
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / ("ours.safetensors" if layout == "wan" else "ours")
    WanVAE.from_pretrained(tmp_path / "theirs").save(path, layout=layout)
    ours = WanVAE.from_pretrained(path)
    assert config_to_diffusers(ours.config) == config_to_diffusers(config)
    if layout == "diffusers":
        again = type(theirs).from_pretrained(path, torch_dtype=torch.float64).state_dict()
        assert all(torch.equal(again[name], weight) for name, weight in theirs.state_dict().items())
    check_parity(theirs, ours, dtype, latents=1 if config.images_only else 3, size=(2, 3))


@pytest.mark.parametrize("style", sorted(STYLES))
def test_bfloat16_is_no_further_from_the_truth_than_theirs(style: str) -> None:
    config = small_config(**STYLES[style], patch_size=2 if style == "2.2" else 1)
    theirs = diffusers_vae(config)
    ours = matching(theirs, config)
    video, latents = random_video(9, 96, 96), random_latents(config, 3, 6, 6)
    found = {}
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            theirs, ours, raw = theirs.to(dtype), ours.to(dtype), ours.denormalize(latents).to(dtype)
            found[dtype] = {
                "our means": ours.posterior(video.to(dtype)).mean,
                "their means": theirs.encode(video.to(dtype)).latent_dist.mean,
                "our frames": ours.decode(ours.normalize(raw)),
                "their frames": theirs.decode(raw).sample,
            }
    errors = {
        name: (found[torch.bfloat16][name].double() - truth).square().mean(dim=(0, 1, 3, 4)).sqrt()
        for name, truth in found[torch.float64].items()
    }
    for kind in ("means", "frames"):
        assert errors[f"our {kind}"].mean() < errors[f"their {kind}"].mean()
        # Few numbers in each: a single latent or frame may be off by chance.
        assert (errors[f"our {kind}"] < 1.1 * errors[f"their {kind}"]).all()


def check_upscaling(theirs: torch.nn.Module, ours: WanVAE, dtype: torch.dtype) -> None:
    latents = random_latents(ours.config, 2, 2, 3, dtype=dtype)
    twelve = theirs.to(dtype).decode(ours.to(dtype).denormalize(latents)).sample
    # As the published decoder is used: pixel_shuffle of every frame.
    expected = torch.nn.functional.pixel_shuffle(twelve.movedim(2, 1), 2).movedim(1, 2)
    decoded = ours.decode(latents)
    assert decoded.shape == (1, 3, 5, 2 * 8 * 2, 2 * 8 * 3)
    assert relative_difference(decoded, expected) <= TOLERANCE[dtype]


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from(sorted(STYLES)))
def test_sizes_and_lengths(latents: int, height: int, width: int, style: str) -> None:
    config = small_config(**STYLES[style], patch_size=2 if style == "2.2" else 1)
    theirs = diffusers_vae(config)
    check_parity(theirs, matching(theirs, config), torch.float64, latents, (height, width))


def matching(theirs: torch.nn.Module, config: VAEConfig) -> WanVAE:
    from wan_vae.checkpoints.layouts import stored_names

    weights, ours = theirs.state_dict(), WanVAE(config)
    names = stored_names(list(ours.state_dict()), config, "diffusers")
    assert sorted(names.values()) == sorted(weights)
    return WanVAE.from_weights(config, {here: weights[there] for here, there in names.items()})


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["wan2.1", "wan2.2"])
def test_full_width(preset: str) -> None:
    config = load_config(preset)
    needed = {"wan2.1": 6, "wan2.2": 16}[preset]
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else needed
    if present < needed:
        pytest.skip(f"{preset} twice in float64 needs {needed} GiB of memory; this machine has {present:.0f}")
    theirs = diffusers_vae(config)
    ours = matching(theirs, config)
    for dtype in (torch.float64, torch.float32):
        check_parity(theirs, ours, dtype, latents=3, size={"wan2.1": (4, 6), "wan2.2": (2, 3)}[preset])
