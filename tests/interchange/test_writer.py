"""Latents written for other programs, read with the libraries that those programs read them with."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers import small_config
from wan_vae import LatentsError, UserError
from wan_vae.interchange import ForeignWriter, read_latents, write_latents
from wan_vae.interchange.formats import clip_of
from wan_vae.posterior import LatentStatistics

CONFIG = small_config()
Z = torch.randn(1, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))
RAW = LatentStatistics.of(CONFIG, Z.dtype, Z.device).denormalized(Z)


def test_comfyui_latent_holds_raw_values_and_the_version(tmp_path: Path) -> None:
    write_latents(tmp_path / "x.latent", Z.bfloat16(), CONFIG)
    tensors = load_file(tmp_path / "x.latent")
    raw = LatentStatistics.of(CONFIG, torch.float32, Z.device).denormalized(Z.bfloat16().float())
    assert torch.equal(tensors["latent_tensor"], raw)
    assert tensors["latent_format_version_0"].shape == (0,)
    with safe_open(tmp_path / "x.latent", "pt") as file:
        assert file.metadata() == {"prompt": ""}


def test_fastvideo_tensor_is_raw_float32_without_a_batch(tmp_path: Path) -> None:
    write_latents(tmp_path / "x.pt", Z, CONFIG, format="fastvideo")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, RAW[0])


@pytest.mark.parametrize("values", [None, "raw", "normalized"])
@pytest.mark.parametrize("extension", ["pt", "pth", "npy", "safetensors"])
def test_bare_tensors_hold_what_is_asked_for(extension: str, values: str | None, tmp_path: Path) -> None:
    path = tmp_path / f"x.{extension}"
    write_latents(path, Z, CONFIG, format="tensor", values=values)
    if extension == "npy":
        loaded = torch.from_numpy(np.load(path))
    else:
        loaded = load_file(path)["latents"] if extension == "safetensors" else torch.load(path, weights_only=True)
    assert torch.equal(loaded, RAW if values == "raw" else Z)
    torch.testing.assert_close(read_latents(path, CONFIG, values=values or "normalized"), Z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bare_tensors_keep_the_dtype_that_the_format_has(dtype: torch.dtype, tmp_path: Path) -> None:
    for extension in ("pt", "npy", "safetensors"):
        write_latents(tmp_path / f"x.{extension}", Z.to(dtype), CONFIG, format="tensor")
        read = read_latents(tmp_path / f"x.{extension}", CONFIG, values="normalized")
        kept = torch.float32 if (extension, dtype) == ("npy", torch.bfloat16) else dtype
        assert read.dtype == kept
        assert torch.equal(read, Z.to(dtype).to(kept))


def test_musubi_cache_has_its_key_and_metadata(tmp_path: Path) -> None:
    config = small_config(latent_channels=16)
    latents = torch.randn(1, 16, 2, 4, 6)
    for is_image in (False, True):
        with ForeignWriter(tmp_path / "x_wan.safetensors", "musubi", config, is_image=is_image) as writer:
            for chunk in latents.split(1, dim=2):
                writer.write(chunk)
            writer.finish(clip_of(tuple(latents.shape), config, Fraction(1)))
        with safe_open(tmp_path / "x_wan.safetensors", "pt") as file:
            metadata = file.metadata()
            assert torch.equal(file.get_tensor("latents_2x4x6_bfloat16"), latents[0].bfloat16())
        count = {} if is_image else {"frame_count": "3"}
        expected = {"architecture": "wan", "width": "12", "height": "8", "format_version": "1.0.1"}
        assert metadata == expected | count
    with pytest.raises(LatentsError, match="16 channels; this model's have 3"):
        ForeignWriter(tmp_path / "y", "musubi", CONFIG)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "x.safetensors",
            {"format": "comfyui"},
            "cannot be written in the format comfyui, which takes a file that ends",
        ),
        ("x.latent", {"values": "normalized"}, "comfyui holds raw latents, not normalized ones; --format tensor"),
        ("x.pt", {"format": "other"}, "format is 'other'; the formats are wan-vae, comfyui, musubi, fastvideo, tensor"),
        ("x.pt", {"values": "both"}, "values is 'both'; it must be raw or normalized"),
        ("x.safetensors", {}, "format is 'wan-vae'; save_latents writes it"),
        ("x", {"format": "musubi"}, "format is 'musubi'; encode_file writes it"),
    ],
)
def test_write_latents_refuses_what_no_format_holds(
    name: str, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_latents(tmp_path / name, Z, CONFIG, **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 4, 1, 2, 2), (3, 1, 2, 2), (2, 3, 1, 2, 2)])
def test_write_latents_of_another_model_or_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    for name in ("x.latent", "x.npy"):
        with pytest.raises(UserError, match=r"3, t, h, w|a file holds one clip"):
            write_latents(tmp_path / name, torch.zeros(shape), CONFIG)
    assert not any(tmp_path.iterdir())


def test_write_latents_never_replaces_without_overwrite(tmp_path: Path) -> None:
    write_latents(tmp_path / "x.npy", Z, CONFIG)
    with pytest.raises(UserError, match="exists"):
        write_latents(tmp_path / "x.npy", Z, CONFIG)
    with pytest.raises(LatentsError, match="NaN"):
        write_latents(tmp_path / "x.npy", Z * torch.nan, CONFIG, overwrite=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), Z)
    assert len(list(tmp_path.iterdir())) == 1
