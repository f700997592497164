"""Latents of other programs, written here as those programs write them."""

import dataclasses
import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.helpers import small_config
from wan_vae import LatentsError, UserError
from wan_vae.config import load_config
from wan_vae.interchange import ForeignLatents, open_latents, read_latents
from wan_vae.interchange.formats import clip_of
from wan_vae.interchange.reader import find_latents
from wan_vae.io.latents_file import save_latents
from wan_vae.posterior import LatentStatistics

CONFIG = small_config()
Z = torch.randn(1, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0))


def raw_of(normalized: torch.Tensor) -> torch.Tensor:
    return LatentStatistics.of(CONFIG, normalized.dtype, normalized.device).denormalized(normalized)


def comfyui(path: Path, latents: torch.Tensor) -> None:
    save_file({"latent_tensor": latents, "latent_format_version_0": torch.tensor([])}, path, {"prompt": "{}"})


def musubi(path: Path, latents: torch.Tensor) -> None:
    tensors = {"latents_5x4x6_float32": latents[0], "clip_float16": torch.zeros(2, 3), "f_indices_int32": torch.ones(1)}
    save_file(tensors, path, {"architecture": "wan", "width": "48", "height": "32", "format_version": "1.0.1"})


def ai_toolkit(path: Path, latents: torch.Tensor) -> None:
    save_file({"latent": latents[0], "num_frames": torch.ones(1)}, path, {"latent_space_version": "wan21"})


def legacy(path: Path, latents: torch.Tensor) -> None:
    torch.save(latents, path, _use_new_zipfile_serialization=False)


def numpy(path: Path, latents: torch.Tensor) -> None:
    with path.open("wb") as file:
        np.save(file, latents.numpy())


WRITERS: dict[str, tuple[Callable[[Path, torch.Tensor], None], str, str | None]] = {
    "comfyui": (comfyui, "a latent of ComfyUI", "raw"),
    "musubi": (musubi, "a cache of musubi-tuner", "normalized"),
    "ai-toolkit": (ai_toolkit, "a cache of ai-toolkit", "normalized"),
    "npy": (numpy, "a bare tensor", None),
    "pt": (lambda path, latents: torch.save(latents[0], path), "a bare tensor", None),
    "old pt": (legacy, "a bare tensor", None),
    "strided pt": (lambda path, latents: torch.save(latents.transpose(3, 4), path), "a bare tensor", None),
    "negated pt": (lambda path, latents: torch.save(torch._neg_view(-latents), path), "a bare tensor", None),
    "dictionary": (lambda path, x: torch.save({"samples": x, "noise": x + 1}, path), "a bare tensor", None),
    "one tensor": (lambda path, latents: save_file({"any": latents}, path), "a bare tensor", None),
    "named": (
        lambda path, x: save_file({"latents": x, "more": x + 1}, path, {"wan_vae.values": "raw"}),
        "a bare",
        "raw",
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_latents_of_other_programs_are_recognized_and_read_in_chunks(kind: str, tmp_path: Path) -> None:
    write, title, values = WRITERS[kind]
    path = tmp_path / "file"  # the extension says nothing
    write(path, Z)
    expected = Z.transpose(3, 4) if kind == "strided pt" else Z
    read = open_latents(path)
    assert isinstance(read, ForeignLatents)
    assert title in read.form.title
    assert (read.shape, read.dtype, read.values) == (tuple(expected.shape), "F32", values)
    assert torch.equal(torch.cat(list(read.chunks(2)), dim=2), expected)
    assert [chunk.shape[2] for chunk in read.chunks(2)] == [2, 2, 1]
    for count in (0, -1, 1.5):
        with pytest.raises(UserError, match=f"count is {count}; it must be a whole number above 0"):
            read.chunks(count)  # type: ignore[arg-type]


def test_raw_latents_are_normalized_and_normalized_ones_are_kept(tmp_path: Path) -> None:
    comfyui(tmp_path / "raw", raw_of(Z))
    musubi(tmp_path / "normalized", Z)
    torch.testing.assert_close(read_latents(tmp_path / "raw", CONFIG), Z)
    assert torch.equal(read_latents(tmp_path / "normalized", CONFIG), Z)
    comfyui(tmp_path / "half", raw_of(Z).bfloat16())
    assert read_latents(tmp_path / "half", CONFIG).dtype == torch.float32  # no second rounding


@settings(max_examples=10)
@given(preset=st.sampled_from(["wan2.1", "wan2.2"]), seed=st.integers(0, 99), is_raw=st.booleans())
def test_values_that_no_file_names_are_guessed_with_a_notice(
    preset: str, seed: int, is_raw: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, draw = load_config(preset), torch.Generator().manual_seed(seed)
    # A clip's channels have means and deviations of their own, unlike the training data's.
    shape = (1, config.latent_channels, 1, 1, 1)
    latents = torch.randn(1, config.latent_channels, 2, 8, 8, generator=draw) * (
        0.5 + 0.8 * torch.rand(shape, generator=draw)
    ) + 0.5 * torch.randn(shape, generator=draw)
    if is_raw:
        latents = LatentStatistics.of(config, latents.dtype, latents.device).denormalized(latents)
    path = tmp_path_factory.mktemp("guess") / "x.pt"
    torch.save(latents, path)
    assert ForeignLatents(path).guess(config).values == ("raw" if is_raw else "normalized")


def test_a_guess_is_reported_and_an_option_ends_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, config = tmp_path / "x.npy", small_config(latent_std=(5.0, 6.0, 7.0))
    numpy(path, Z)
    with caplog.at_level(logging.WARNING, "wan_vae"):
        assert torch.equal(read_latents(path, config), Z)
        (notice,) = caplog.messages
        assert "look normalized. --values raw or --values normalized (in Python, values) says it" in notice
        caplog.clear()
        assert not torch.equal(read_latents(path, config, values="raw"), Z)
        read_latents(path, small_config(latent_mean=(0.0,) * 3, latent_std=(1.0,) * 3))  # both are the same
        assert not caplog.messages
        comfyui(tmp_path / "x.latent", Z)
        assert torch.equal(read_latents(tmp_path / "x.latent", config, values="normalized"), Z)
        assert "a latent of ComfyUI, which holds raw latents; it is read as normalized" in caplog.text


def test_latents_whose_statistics_fit_neither_are_called_unsure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numpy(tmp_path / "x.npy", Z)
    with caplog.at_level(logging.WARNING, "wan_vae"):
        read_latents(tmp_path / "x.npy", small_config(latent_mean=(0.0,) * 3, latent_std=(1.01,) * 3))
    assert "hardly more than the other" in caplog.text


def test_image_latents_of_comfyui_have_no_time(tmp_path: Path) -> None:
    comfyui(tmp_path / "x.latent", Z[:, :, 0].contiguous())
    assert ForeignLatents(tmp_path / "x.latent").shape == (1, 3, 1, 4, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(3, 1, 2, 2), "b": torch.zeros(3, 1, 2, 2)}, r"holds 2 tensors \(a \(3, 1, 2, 2\), b"),
        ({"a": {"latents": Z[0]}, "b": {"latents": Z[0]}}, r"holds 2 tensors \(a.latents"),
        ({"latents": torch.zeros(3, 1, 2, 2, dtype=torch.int32)}, "which are latents does not show"),
        (torch.zeros(2, 3, 1, 2, 2), r"holds 2 clips, \(2, 3, 1, 2, 2\); save one"),
        (torch.zeros(3, 0, 2, 2), "its latents are empty"),
        (torch.zeros(3), r"a tensor \(3,\)"),
        (7, "holds a int, not named tensors"),
    ],
)
def test_files_without_latents_of_one_clip_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(LatentsError, match=f"x.pt is no latents file: .*{message}"):
        open_latents(path)
    assert find_latents(path) is None


def test_a_cache_of_musubi_for_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"latents_1x2x2_float32": torch.zeros(3, 1, 2, 2)}, tmp_path / "x", {"architecture": "hunyuan_video"})
    with pytest.raises(LatentsError, match="a cache of musubi-tuner for 'hunyuan_video'"):
        open_latents(tmp_path / "x")


def test_hostile_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    numpy(path, Z)
    whole = path.read_bytes()
    computed, huge = (
        whole.replace(b"(1, 3, 5, 4, 6)", shape.ljust(15)) for shape in (b"(1,3,5,4,9**9)", b"(3,999999999,9)")
    )
    cases = {
        whole[:-1]: "and its header describes",
        whole[:40]: "header",
        computed: "header cannot be used",
        huge: "and its header describes",
        whole.replace(b"(1, 3, 5, 4, 6)", b"(9999999999999)"): "header",
        whole.replace(b"'<f4'", b"'|O8'"): "header cannot be used",
        whole[:6] + b"\2" + whole[7:]: "not of version 1.0",
        whole.replace(b"'fortran_order': False", b"'fortran_order': True "): "Fortran",
        b"nothing of the kind": "neither safetensors, nor a file of torch.save, nor .npy",
    }
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(LatentsError, match=message):
            open_latents(path)
    with pytest.raises(LatentsError, match="not a file"):
        open_latents(tmp_path)


def test_values_that_are_not_finite_or_change_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for write in (numpy, legacy):
        write(path, torch.full((1, 3, 1, 2, 2), torch.nan))
        with pytest.raises(LatentsError, match="NaN or infinite values from latent frame 0 on"):
            read_latents(path, CONFIG, values="raw")
    numpy(path, Z)
    opened = open_latents(path)
    numpy(path, torch.cat([Z, Z], dim=2))
    with pytest.raises(LatentsError, match="was changed while it was read"):
        next(opened.chunks(1))


@pytest.mark.parametrize(
    ("channels", "frames", "hint"),
    [
        (4, 1, "choose the checkpoint"),
        (6, 1, "save the mean alone"),
        (4, 3, "time comes before the channels"),
        (1, 3, r"a picture, perhaps: save it as \(1, z, 1, h, w\)"),
    ],
)
def test_latents_of_another_model_are_refused(channels: int, frames: int, hint: str, tmp_path: Path) -> None:
    numpy(tmp_path / "x.npy", torch.zeros(1, channels, frames, 2, 2))
    with pytest.raises(LatentsError, match=f"holds {channels} channels .*the model's latents have 3; .*{hint}"):
        read_latents(tmp_path / "x.npy", CONFIG)


def test_latents_of_this_package_must_be_those_of_the_model(tmp_path: Path) -> None:
    path, info = tmp_path / "x.safetensors", clip_of((1, 3, 2, 4, 6), CONFIG, Fraction(16))
    save_latents(path, Z[:, :, :2], info)
    assert torch.equal(read_latents(path, CONFIG), Z[:, :, :2])
    other = dataclasses.replace(CONFIG, latent_std=(2.0, 2.0, 2.0))
    with pytest.raises(LatentsError, match=r"x.safetensors was encoded with another model, .*whose latent std is"):
        read_latents(path, other)
    with pytest.raises(LatentsError, match="its latents are normalized, not raw"):
        read_latents(path, CONFIG, values="raw")


def test_layers_of_a_picture_are_not_taken_for_its_frames(tmp_path: Path) -> None:
    facts = {"architecture": "qwen_image_layered", "width": "48", "height": "32", "format_version": "1.0.1"}
    save_file({"latents_1x4x6_float32": Z[0, :, :1].contiguous()}, tmp_path / "one", facts)
    assert ForeignLatents(tmp_path / "one").shape == (1, 3, 1, 4, 6)
    save_file({"latents_3x4x6_float32": Z[0, :, :3].contiguous()}, tmp_path / "three", facts)
    with pytest.raises(LatentsError, match="several layers that are pictures of their own"):
        ForeignLatents(tmp_path / "three")


def test_clip_of_latents_without_properties_is_all_that_they_decode_to(tmp_path: Path) -> None:
    numpy(tmp_path / "x.npy", Z)
    latents = ForeignLatents(tmp_path / "x.npy")
    info = latents.clip(CONFIG, latents.usual_fps)
    assert (info.frames, info.width, info.height, info.fps) == (9, 12, 8, Fraction(16))
    numpy(tmp_path / "x.npy", torch.zeros(1, 48, 1, 2, 2))
    assert ForeignLatents(tmp_path / "x.npy").usual_fps == 24
