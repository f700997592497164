"""Clips encoded and decoded by the commands keep their number of frames, size, rate and pixels."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.cli.running import read_clip, run, write_clip
from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.cli.common import load_model
from wan_vae.config import load_config
from wan_vae.io import open_clip
from wan_vae.io.frames import tensors_to_frames
from wan_vae.io.latents_file import LatentsFile


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 8),
    width=st.integers(2, 33),
    height=st.integers(2, 33),
    fps=st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(12)]),
)
def test_any_size_and_any_number_of_frames_come_back(
    frames: int,
    width: int,
    height: int,
    fps: Fraction,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("round_trip")
    clip = write_clip(folder / "clip.mkv", frames=frames, width=width, height=height, fps=fps)
    latents, out = folder / "clip.safetensors", folder / "out.mkv"
    assert run(capsys, "encode", clip, latents, "--checkpoint", checkpoint).code == 0
    assert run(capsys, "decode", latents, out, "--checkpoint", checkpoint).code == 0
    with open_clip(out) as decoded:
        info = decoded.info
    assert (info.frames, info.width, info.height, info.fps) == (frames, width, height, fps)
    assert read_clip(out).shape == (frames, height, width, 3)


def test_encode_then_decode_equals_reconstruct(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, decoded, direct = tmp_path / "l.safetensors", tmp_path / "decoded.mkv", tmp_path / "direct.mkv"
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint)
    run(capsys, "decode", latents, decoded, "--checkpoint", checkpoint, "--lossless")
    run(capsys, "reconstruct", clip, direct, "--checkpoint", checkpoint, "--lossless")
    assert np.array_equal(read_clip(decoded), read_clip(direct))

    # By hand, with padding made in one piece: 6 frames of 19x13 become 7 of 20x14.
    source = torch.from_numpy(read_clip(clip)).permute(3, 0, 1, 2) / 127.5 - 1
    padded = torch.nn.functional.pad(source[None], (0, 1, 0, 1, 0, 1), mode="replicate")
    vae = WanVAE.from_pretrained(checkpoint)
    final = vae.encode(padded)
    torch.testing.assert_close(torch.cat(list(LatentsFile(latents).chunks(2)), dim=2), final, rtol=1e-4, atol=1e-5)
    by_hand = next(tensors_to_frames([vae.decode(final)], 19, 13, vae.device))[:6].astype(int)
    assert np.abs(read_clip(direct).astype(int) - by_hand).max() <= 1


def test_latents_file_describes_the_clip(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "l.safetensors"
    result = run(capsys, "encode", clip, latents, "--checkpoint", checkpoint, "--json").result()
    assert (result["latents"], result["frames"], result["size"]) == ([1, 3, 4, 7, 10], 6, "19x13")
    info = LatentsFile(latents).info
    assert (info.frames, info.width, info.height, info.fps) == (6, 19, 13, Fraction(30000, 1001))
    assert info.config == WanVAE.from_pretrained(checkpoint).config


def test_size_frames_and_fps_select_the_clip(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mkv"
    options = ("--size", "24x16", "--frames", "2:10", "--fps", "60000/1001")
    run(capsys, "reconstruct", clip, out, "--checkpoint", checkpoint, *options)
    with open_clip(out) as decoded:
        info = decoded.info
    assert (info.frames, info.width, info.height, info.fps) == (8, 24, 16, Fraction(60000, 1001))


@pytest.mark.parametrize(
    ("options", "size"), [(("--size", "38x"), (38, 26)), (("--size", "x30"), (44, 30)), (("--size", "24x24"), (24, 24))]
)
def test_fit_and_a_side_give_square_pixels(
    clip: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    size: tuple[int, int],
) -> None:
    out = tmp_path / "out.mkv"
    run(capsys, "reconstruct", clip, out, "--checkpoint", checkpoint, *options, "--fit", "pad")
    with open_clip(out) as decoded:
        assert (decoded.info.width, decoded.info.height, decoded.info.pixel_aspect) == (*size, 1)


def test_posterior_is_stored_and_told_and_has_no_place_in_other_formats(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    for options, stored in ((("--posterior",), True), (("--overwrite",), False)):
        run(capsys, "encode", clip, out, "--checkpoint", checkpoint, *options)
        assert run(capsys, "info", out, "--json").result()["logvar"] is stored
    refused = run(capsys, "encode", clip, tmp_path / "a.pt", "--checkpoint", checkpoint, "--posterior")
    assert refused.code == 2
    assert "a.pt, a bare tensor, has no place for the log-variance" in refused.err


def test_reconstruct_measures_the_network_and_not_the_codec(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lossless, lossy = tmp_path / "lossless.mkv", tmp_path / "lossy.mp4"
    exact = run(capsys, "reconstruct", clip, lossless, "--checkpoint", checkpoint, "--lossless", "--json").result()
    coded = run(capsys, "reconstruct", clip, lossy, "--checkpoint", checkpoint, "--json").result()
    assert (exact["psnr"], exact["ssim"]) == (coded["psnr"], coded["ssim"])
    difference = read_clip(clip).astype(float) - read_clip(lossless)
    by_hand = np.mean(10 * np.log10(255**2 / (difference**2).mean(axis=(1, 2, 3))))
    assert exact["psnr"] == pytest.approx(by_hand, abs=1e-4)
    assert exact["peak_memory"] > 0
    assert exact["frames_per_second"] > 0


def test_an_upscaling_decoder_writes_a_larger_clip(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "upscale.safetensors", tmp_path / "out.mkv"
    random_vae(small_config(output_upscale=2), torch.float32).save(checkpoint)
    result = run(capsys, "reconstruct", clip, out, "--checkpoint", checkpoint, "--json").result()
    assert (result["size"], result["psnr"]) == ("38x26", None)
    assert read_clip(out).shape == (6, 26, 38, 3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "float32", "bfloat16"])
def test_dtype_option_sets_the_latents_dtype(
    dtype: str, clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "l.safetensors"
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint, "--dtype", dtype)
    assert LatentsFile(latents).dtype == ("BF16" if dtype.startswith("b") else "F32")
    assert run(capsys, "decode", latents, tmp_path / "o.mkv", "--checkpoint", checkpoint, "--dtype", dtype).code == 0


@pytest.mark.parametrize(
    ("capabilities", "decoder"),
    [({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32)],
)
def test_auto_dtype_on_a_cpu_decodes_in_bfloat16_where_that_is_fast(
    capabilities: dict[str, bool], decoder: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    vae = load_model("nano", device="cpu", dtype="auto")
    latents = vae.encode(torch.zeros(1, 3, 1, 8, 8))
    assert (latents.dtype, vae.decode(latents).dtype) == (torch.float32, decoder)


def test_info_recognizes_each_kind_of_file(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, folder = tmp_path / "l.safetensors", tmp_path / "vae"
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint)
    run(capsys, "convert", checkpoint, folder, "--layout", "diffusers")
    kinds = {path: run(capsys, "info", path, "--json").result() for path in (clip, latents, checkpoint, folder)}
    assert kinds[clip]["kind"] == "clip"
    assert (kinds[clip]["frames"], kinds[clip]["fps"]) == (6, "30000/1001")
    assert (kinds[latents]["kind"], kinds[latents]["shape"]) == ("latents", [1, 3, 4, 7, 10])
    assert (kinds[checkpoint]["kind"], kinds[checkpoint]["layout"]) == ("checkpoint", "wan")
    assert (kinds[folder]["kind"], kinds[folder]["layout"]) == ("checkpoint", "diffusers")
    assert kinds[folder]["digest"] == kinds[checkpoint]["digest"] == kinds[latents]["checkpoint"]
    table = run(capsys, "info", checkpoint)
    assert table.code == 0
    assert "parameters" in table.out


def test_convert_to_diffusers_and_back_keeps_every_weight(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / "vae", tmp_path / "back.safetensors"
    run(capsys, "convert", checkpoint, there, "--layout", "diffusers")
    result = run(capsys, "convert", there, back, "--layout", "wan", "--json").result()
    assert (result["from_layout"], result["layout"]) == ("diffusers", "wan")
    before, after = load_file(checkpoint), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_decode_with_another_model_names_the_one_that_encoded(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, other = tmp_path / "l.safetensors", tmp_path / "other.safetensors"
    run(capsys, "encode", clip, latents, "--checkpoint", "nano", "--frames", "0:1")
    random_vae(load_config("nano"), torch.float32).save(other)
    outcome = run(capsys, "decode", latents, tmp_path / "o.mkv", "--checkpoint", other)
    assert outcome.code == 2
    assert "l.safetensors was encoded with nano, and cannot be decoded with" in outcome.err
    assert "latent mean is another" in outcome.err
    assert len(outcome.err) < 500


def test_decode_with_other_weights_warns(
    clip: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    latents, other = tmp_path / "l.safetensors", tmp_path / "other.safetensors"
    random_vae(small_config(), torch.float32, seed=1).save(other)
    run(capsys, "encode", clip, latents, "--checkpoint", checkpoint)
    assert run(capsys, "decode", latents, tmp_path / "same.mkv", "--checkpoint", checkpoint).code == 0
    assert "other weights" not in caplog.text
    assert run(capsys, "decode", latents, tmp_path / "other.mkv", "--checkpoint", other).code == 0
    assert "was encoded by other weights" in caplog.text
