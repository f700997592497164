"""Previews: a linear map from latents to colors, and the clips that are made with it."""

import importlib.util
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.cli.running import read_clip, run, write_clip
from tests.helpers import random_latents, small_config
from wan_vae import LatentsError, UserError, WanVAE, encode_file, preview_file
from wan_vae.config import load_config
from wan_vae.interchange import write_latents
from wan_vae.io import Color, LatentsInfo, open_clip, save_latents
from wan_vae.preview import FACTORS_FILE, load_factors, preview

WAN = load_config("wan2.1")


def latents_info(frames: int, width: int, height: int) -> LatentsInfo:
    return LatentsInfo(frames, width, height, Fraction(24), Fraction(1), Color("rgb", True), WAN, "0")


@pytest.mark.parametrize("name", ["wan2.1", "wan2.2", "qwen-image", "lightvae", "nano"])
def test_factors_of_every_published_model_are_there_and_say_where_from(name: str) -> None:
    config = WanVAE.from_pretrained("nano").config if name == "nano" else load_config(name)
    factors = load_factors(config)
    assert factors.factors.shape == (config.latent_channels, 3)
    assert factors.bias.shape == (3,)
    assert ("Fitted by scripts/fit_preview.py" if name == "nano" else "stable-diffusion.cpp") in factors.origin
    with pytest.raises(LatentsError, match=r"no preview of this model's latents, only of those of wan2\.1"):
        load_factors(replace(config, latent_mean=(0.5,) * config.latent_channels))


def test_preview_is_linear_and_keeps_to_the_range() -> None:
    assert torch.allclose(preview(torch.zeros(1, 16, 2, 3, 4), WAN)[0, :, 1, 2, 3], load_factors(WAN).bias)
    latents = torch.randn(1, 16, 2, 3, 4)
    by_hand = load_factors(WAN).bias + latents[0, :, 1, 2, 3] @ load_factors(WAN).factors
    assert torch.allclose(preview(latents, WAN)[0, :, 1, 2, 3], by_hand.clamp(-1, 1), atol=1e-6)
    assert preview(100 * latents.bfloat16(), WAN).abs().max() == 1
    assert torch.equal(preview(latents.expand(2, -1, -1, -1, -1), WAN)[1:], preview(latents, WAN))
    with pytest.raises(UserError, match=r"are \(B, 16, t, h, w\), but these are \(1, 3, 2, 3, 4\)"):
        preview(latents[:, :3], WAN)
    with pytest.raises(UserError, match="list"):
        preview([1], WAN)  # type: ignore[arg-type]


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_preview_is_float32_whatever_the_defaults_of_torch_are(default: torch.dtype) -> None:
    latents = random_latents(WAN, 2, 4, 4, dtype=torch.float32)
    expected = preview(latents, WAN)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        with torch.device("meta"):
            found = preview(latents, WAN)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_preview_is_where_the_latents_are() -> None:
    config = load_config("wan2.1")
    assert preview(torch.empty(1, 16, 2, 3, 4, device="meta"), config).device.type == "meta"


def test_preview_of_our_own_file_has_the_size_length_and_rate_of_the_clip(tmp_path: Path) -> None:
    latents = torch.zeros(1, 16, 3, 2, 3)
    latents[:, 2, 1] = 2.0  # the second latent stands for frames 1 to 4
    save_latents(tmp_path / "z.safetensors", latents, latents_info(7, 21, 16))
    calls: list[tuple[int, int]] = []
    result = preview_file(
        tmp_path / "z.safetensors", tmp_path / "p.mkv", lossless=True, progress=lambda *done: calls.append(done)
    )
    assert (result.frames, result.width, result.height, result.fps) == (7, 21, 16, 24)
    assert (calls[0], calls[-1]) == ((0, 7), (7, 7))
    frames = read_clip(tmp_path / "p.mkv").astype(int)
    assert frames.shape == (7, 16, 21, 3)
    colors = frames.reshape(7, -1, 3)
    assert np.ptp(colors, axis=1).max() <= 1  # one color a frame
    assert [int(color[0, 0] > colors[0, 0, 0] + 20) for color in colors] == [0, 1, 1, 1, 1, 0, 0]


def test_preview_of_other_programs_latents_is_of_wan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    latents = torch.randn(1, 16, 2, 2, 3)
    save_latents(tmp_path / "z.safetensors", latents, latents_info(5, 24, 16))
    write_latents(tmp_path / "z.latent", latents, WAN)
    for name in ("z.safetensors", "z.latent"):
        preview_file(tmp_path / name, tmp_path / f"{name}.mkv", lossless=True, fps=12)
        with open_clip(tmp_path / f"{name}.mkv") as clip:
            assert clip.info.fps == 12
    own, theirs = (read_clip(tmp_path / f"z.{name}.mkv").astype(int) for name in ("safetensors", "latent"))
    assert np.abs(own - theirs).max() <= 1
    assert "does not say which model encoded it; it is shown as wan2.1's." in caplog.text
    write_latents(tmp_path / "x.latent", torch.zeros(1, 3, 1, 2, 2), small_config())
    with pytest.raises(LatentsError, match=r"has 3 channels; Wan2\.1's have 16 and Wan2\.2's 48"):
        preview_file(tmp_path / "x.latent", tmp_path / "x.mkv")
    with pytest.raises(LatentsError, match="its latents are normalized, not raw"):
        preview_file(tmp_path / "z.safetensors", tmp_path / "x.mkv", values="raw")


def test_preview_of_a_real_clip_resembles_it(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", frames=5, width=64, height=64, fps=Fraction(16))
    encode_file(clip, tmp_path / "z.safetensors", "nano")
    preview_file(tmp_path / "z.safetensors", tmp_path / "p.mkv", lossless=True)
    source, shown = (torch.from_numpy(read_clip(tmp_path / name)).double() for name in ("clip.mkv", "p.mkv"))
    small = [F.avg_pool2d(frames.permute(0, 3, 1, 2), 16).flatten() for frames in (source, shown)]
    assert torch.corrcoef(torch.stack(small))[0, 1] > 0.8


def test_decode_with_preview_needs_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_latents(tmp_path / "z.safetensors", torch.zeros(1, 16, 2, 2, 3), latents_info(5, 24, 16))
    words = ("decode", tmp_path / "z.safetensors", tmp_path / "p.mp4", "--preview", "--json")
    result = run(capsys, *words).result()
    assert (result["frames"], result["size"]) == (5, "24x16")
    outcome = run(capsys, *words, "--shards", 2, "--overwrite")
    assert (outcome.code, "--shards is 2, but --preview is the work of one process" in outcome.err) == (2, True)


def test_fit_preview_finds_the_linear_map_of_a_model(tmp_path: Path) -> None:
    place = Path(__file__).parents[1] / "scripts" / "fit_preview.py"
    spec = importlib.util.spec_from_file_location("fit_preview", place)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    clip = write_clip(tmp_path / "clip.mkv", frames=9, width=48, height=40, fps=Fraction(16))
    output = tmp_path / "factors.json"
    script.fit_preview([clip], origin="here", frames=9, side=40, output=output)
    entry = json.loads(output.read_text())["nano"]
    assert (entry["origin"], len(entry["factors"]), len(entry["bias"])) == ("here", 16, 3)
    latents, pictures = script.pair(WanVAE.from_pretrained("nano"), clip, 9, 40)
    assert (latents.shape, pictures.shape) == ((1, 16, 3, 5, 6), (1, 3, 3, 5, 6))
    fitted = torch.einsum("bzthw,zc->bcthw", latents, torch.tensor(entry["factors"]))
    fitted += torch.tensor(entry["bias"]).view(1, 3, 1, 1, 1)
    shipped = preview(latents, WanVAE.from_pretrained("nano").config)
    assert (fitted - pictures).square().mean() < (shipped - pictures).square().mean()
    assert script.to_json(json.loads(FACTORS_FILE.read_text())) == FACTORS_FILE.read_text()
