"""The formats of a cache: names, keys, shapes and values of their files, and what is refused."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.cli.running import write_clip
from tests.helpers import random_vae, small_config
from wan_vae import WanVAE
from wan_vae.cli.cache import CacheFormat
from wan_vae.dataset import CacheOptions, Extract, LatentDataset, cache_latents
from wan_vae.dataset.ai_toolkit import crop_facts, toolkit_path, video_facts
from wan_vae.dataset.outputs import CACHE_OUTPUTS
from wan_vae.dataset.plan import CACHE_FORMATS
from wan_vae.errors import UserError


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    """Return a model whose latents are as small as those of Wan2.1."""
    levels = {"width_multipliers": (1, 1, 1, 1), "temporal_downsample": (True, True, False)}
    return random_vae(small_config(latent_channels=16, **levels), torch.float32)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mkv", frames=9, width=64, height=32, fps=Fraction(16))
    write_clip(folder / "sub" / "b.v2.mkv", frames=9, width=64, height=32, fps=Fraction(16))
    Image.fromarray(np.arange(32 * 64 * 3, dtype=np.uint8).reshape(32, 64, 3)).save(folder / "c.png")
    return folder


def files(folder: Path) -> list[str]:
    suffixes = (".pt", ".safetensors")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in suffixes)


def error_of(folder: Path, source: str) -> str:
    lines = (folder / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    return next(str(line["error"]) for line in map(json.loads, lines) if line["source"] == source)


def test_every_format_has_an_output_and_a_choice_of_the_command() -> None:
    assert tuple(CACHE_OUTPUTS) == CACHE_FORMATS
    assert get_args(CacheFormat) == CACHE_FORMATS


def test_cache_for_ai_toolkit_holds_what_its_training_loads(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"resolution": (32, 32), "extract": Extract("head", (5,)), "fps": 16}
    result = cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(format="ai-toolkit", **common))
    assert (result.cached, result.failed) == (3, 0)
    dataset = LatentDataset(tmp_path / "out")
    video = crop_facts("b.v2.mkv", (64, 32), (32, 32), "wan21") | video_facts(5, 16)
    image = crop_facts("c.png", (64, 32), (32, 32), "wan21")
    assert dataset.records[2].output == toolkit_path(Path("sub/b.v2.mkv"), video).as_posix()
    assert dataset.records[1].output == toolkit_path(Path("c.png"), image).as_posix()
    for number, facts, shape in ((2, video, (16, 2, 4, 4)), (1, image, (16, 1, 4, 4))):
        record = dataset.records[number]
        with safe_open(tmp_path / "out" / record.output, framework="pt") as file:
            latents, metadata = file.get_tensor("latent"), file.metadata()
            counts = [file.get_tensor(name) for name in file.keys() if name != "latent"]  # noqa: SIM118
        assert tuple(latents.shape) == shape
        assert metadata["crop_width"] == "32"
        assert metadata["latent_space_version"] == "wan21"
        assert set(metadata) == {*facts, "format"}
        assert [(count.item(), count.dtype, count.shape) for count in counts] == (
            [(5, torch.int32, torch.Size([]))] if "num_frames" in facts else []
        )


def test_cache_for_ai_toolkits_qwen_image_has_pictures_without_time(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    options = CacheOptions(format="ai-toolkit", architecture="qwen_image", resolution=(64, 64))
    result = cache_latents(clips, tmp_path / "out", vae, options=options)
    assert (result.cached, result.failed) == (1, 2)
    assert "is a video, and qwen_image is a model of images" in error_of(tmp_path / "out", "sub/b.v2.mkv")
    (record,) = LatentDataset(tmp_path / "out").records
    # Its sides are multiples of 32.
    assert (
        record.output == toolkit_path(Path("c.png"), crop_facts("c.png", (64, 32), (64, 32), "qwen_image")).as_posix()
    )
    with safe_open(tmp_path / "out" / record.output, framework="pt") as file:
        stored = file.get_tensor("latent")
    assert tuple(stored.shape) == (16, 4, 8)
    assert torch.equal(LatentDataset(tmp_path / "out")[0]["latents"], stored[:, None])


def test_values_for_trainers_are_those_of_our_files(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    extract = Extract("head", (5,))
    cache_latents(clips, tmp_path / "ours", vae, options=CacheOptions(extract=extract))
    cache_latents(clips, tmp_path / "theirs", vae, options=CacheOptions(format="simpletuner", extract=extract))
    ours, theirs = LatentDataset(tmp_path / "ours"), LatentDataset(tmp_path / "theirs")
    assert len(ours) == len(theirs) == 3
    for index in range(3):
        assert torch.equal(ours[index]["latents"], theirs[index]["latents"])
    # A clip that has its bucket's size already is the same for ai-toolkit.
    cache_latents(
        clips, tmp_path / "kit", vae, options=CacheOptions(format="ai-toolkit", extract=extract, resolution=(64, 64))
    )
    kit = LatentDataset(tmp_path / "kit")
    for index in range(3):
        assert torch.equal(ours[index]["latents"], kit[index]["latents"])


def test_cache_for_simpletuner_is_named_by_the_hash_of_the_stem(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    options = CacheOptions(format="simpletuner", extract=Extract("head", (9,)))
    cache_latents(clips, tmp_path / "out", vae, options=options)
    names = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b.v2", "c")}
    assert files(tmp_path / "out") == sorted([f"{names['a']}.pt", f"sub/{names['b.v2']}.pt", f"{names['c']}.pt"])
    latents = torch.load(tmp_path / "out" / f"{names['a']}.pt", weights_only=True)
    assert (type(latents), tuple(latents.shape), latents.dtype) == (torch.Tensor, (16, 3, 4, 8), torch.float32)


def test_clip_whose_sides_simpletuner_would_cut_is_listed(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    write_clip(clips / "odd.mkv", frames=5, width=72, height=32, fps=Fraction(16))
    options = CacheOptions(format="simpletuner", extract=Extract("head", (5,)))
    assert cache_latents(clips, tmp_path / "out", vae, options=options).failed == 1
    assert "odd.mkv has 72x32 pixels; SimpleTuner trains on" in error_of(tmp_path / "out", "odd.mkv")


def test_video_without_a_number_of_frames_is_listed_for_ai_toolkit(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    result = cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(format="ai-toolkit", resolution=(32, 32)))
    assert (result.cached, result.failed) == (1, 2)
    assert "a.mkv is a video: give --target-frames with the `num_frames`" in error_of(tmp_path / "out", "a.mkv")


@pytest.mark.parametrize("name", ["ai-toolkit", "simpletuner"])
def test_part_that_a_list_cuts_has_no_file_for_trainers_with_one_a_clip(
    vae: WanVAE, clips: Path, tmp_path: Path, name: str
) -> None:
    (clips / "list.jsonl").write_text('{"path": "a.mkv", "start": 2}\n', encoding="utf-8")
    resolution = (32, 32) if name == "ai-toolkit" else None
    options = CacheOptions(format=name, resolution=resolution, extract=Extract("head", (5,)))
    assert cache_latents(clips / "list.jsonl", tmp_path / "out", vae, options=options).failed == 1
    assert "a.mkv has a `start` in the list" in error_of(tmp_path / "out", "a.mkv[2:]")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "ai-toolkit"}, "give --resolution NxN with the `resolution` of its dataset"),
        ({"format": "ai-toolkit", "resolution": (64, 32)}, "with the pixels of a square: give --resolution NxN"),
        (
            {"format": "ai-toolkit", "resolution": (32, 32), "extract": Extract("chunk", (5,))},
            "ai-toolkit has one file a clip: give --target-frames",
        ),
        ({"format": "simpletuner", "resolution": (32, 32)}, "SimpleTuner's buckets are those of its metadata"),
        ({"format": "simpletuner", "extract": Extract("head", (1, 5))}, "SimpleTuner has one file a clip"),
        ({"architecture": "wan21"}, "architecture is 'wan21'; it is for the format ai-toolkit alone"),
    ],
)
def test_options_that_a_trainer_has_no_place_for_get_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CacheOptions(**arguments)
