"""`wan-vae cache`."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.running import run, write_clip
from tests.helpers import random_vae, small_config
from tests.test_tiny import random_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    random_vae(small_config(latent_channels=16), torch.float32).save(folder / "vae.safetensors")
    (folder / "clips").mkdir()
    for name in ("a.mkv", "b.mkv"):
        write_clip(folder / "clips" / name, frames=9, width=32, height=16, fps=Fraction(16))
    return folder


def cache(capsys: pytest.CaptureFixture[str], folder: Path, out: str, *options: object) -> tuple[int, str, str]:
    ended = run(capsys, "cache", folder / "clips", folder / out, "--checkpoint", folder / "vae.safetensors", *options)
    return ended.code, ended.out, ended.err


def test_cache_runs_resumes_and_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cache(capsys, folder, "first", "--dry-run", "--json")
    assert (code, json.loads(out)["clips"], json.loads(out)["frames"]) == (0, 2, 18)
    assert not (folder / "first").exists()
    code, out, err = cache(capsys, folder, "first", "--json")
    assert (code, err, json.loads(out)["cached"]) == (0, "", 2)
    code, out, _ = cache(capsys, folder, "first", "--json")
    assert (code, json.loads(out)["kept"]) == (0, 2)
    code, out, _ = cache(capsys, folder, "first", "--verify", "2", "--json")
    assert (code, json.loads(out)) == (0, {"verified": 2, "differing": None})


def test_cache_with_a_clip_that_fails_goes_on_and_ends_with_1(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bad = folder / "clips" / "bad.mp4"
    bad.write_bytes(b"no clip")
    try:
        code, out, err = cache(capsys, folder, "second", "--json")
    finally:
        bad.unlink()
    assert (code, json.loads(out)["cached"], json.loads(out)["failed"]) == (1, 2, 1)
    assert err.startswith("wan-vae: bad.mp4 is left out: ")
    assert "bad.mp4 is left out" in caplog.text


def test_dry_run_tells_what_would_be_pruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(folder / "clips" / "c.mkv", frames=1, width=32, height=16, fps=Fraction(16))
    assert cache(capsys, folder, "fewer")[0] == 0
    (folder / "clips" / "c.mkv").unlink()
    _, out, _ = cache(capsys, folder, "fewer", "--dry-run", "--prune", "--json")
    assert json.loads(out)["pruned"] == 1
    _, out, _ = cache(capsys, folder, "fewer", "--prune", "--json")
    assert json.loads(out)["pruned"] == 1


def test_cache_with_a_tiny_autoencoder_says_what_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "taew2_1.safetensors"
    save_file(random_tiny(dtype=torch.float32).state_dict(), path)
    ended = run(capsys, "cache", folder / "clips", folder / "none", "--checkpoint", path)
    assert ended.code == 2
    assert f"{path} holds a TinyVAE; caches need a WanVAE" in ended.err


def test_cache_of_parts_for_musubi_names_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--format", "musubi", "--target-frames", "1,5", "--extraction", "chunk", "--resolution", "32x16")
    assert cache(capsys, folder, "third", *options)[0] == 0
    names = sorted(path.name for path in (folder / "third").glob("a_*"))
    assert names[0] == "a_00000-001_0032x0016_wan.safetensors"
    assert names[-1] == "a_00008-001_0032x0016_wan.safetensors"
    assert len(names) == 10


def test_cache_for_musubi_takes_the_options_of_its_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--source-fps", "32", "--resolution", "16x32", "--no-buckets", "--i2v", "--target-frames", "5")
    assert cache(capsys, folder, "fourth", "--format", "musubi", *options)[0] == 0
    path = folder / "fourth" / "a_00000-005_0016x0032_wan.safetensors"  # of the frames 0, 2, 4, 6 and 8
    assert [tensor.shape[0] for tensor in load_file(path).values()] == [16, 20]
    code, _, err = cache(capsys, folder, "fifth", "--source-fps", "32")
    assert code == 2
    assert "source_fps is for the format musubi" in err


def test_cache_for_a_model_of_ai_toolkit_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--format", "ai-toolkit", "--resolution", "16x16", "--target-frames", "5", "--fps", "16")
    names = set()
    for architecture in ((), ("--architecture", "wan21"), ("--architecture", "wan22_14b")):
        assert cache(capsys, folder, "fourth", *options, *architecture)[0] == 0
        names |= {path.name for path in (folder / "fourth" / "_latent_cache").glob("a_*.safetensors")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--target-frames", "5,"), "--target-frames is '5,'; write lengths such as 1,25,81"),
        (("--shard", "3/2"), "--shard is '3/2'; write it as I/N, from 1/N to N/N"),
        (("--resolution", "64"), "--resolution is '64'; write it as WIDTHxHEIGHT"),
        (("--format", "ai-toolkit", "--dry-run"), "give --resolution NxN with the `resolution` of its dataset"),
        (("--extraction", "chunk"), "needs the lengths of parts: give target_frames"),
        (("--most-frames", "81"), "--most-frames is 81, which is for --extraction full alone"),
        (("--target-frames", "5", "--stride", "2"), "--stride is 2, which is for --extraction slide alone"),
        (
            ("--verify", "1", "--prune"),
            "--verify encodes clips of the whole cache again and changes nothing; leave out --prune",
        ),
        (("--verify", "1", "--shard", "1/2"), "leave out --shard"),
        (("--dry-run", "--memory", "rubbish"), "'rubbish'"),
        (("--no-upscale",), "upscale is off, which is for buckets of a resolution"),
    ],
)
def test_cache_of_impossible_options_gets_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    code, out, err = cache(capsys, folder, "none", *options)
    assert (code, out) == (2, "")
    assert sentence in err


def test_info_of_a_cache_counts_what_it_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "clips" / "bad.mp4").write_bytes(b"no clip")
    try:
        cache(capsys, folder, "counted", "--json")
    finally:
        (folder / "clips" / "bad.mp4").unlink()
    found = run(capsys, "info", folder / "counted", "--json").result()
    assert (found["kind"], found["clips"], found["outputs"], found["frames"], found["failed"]) == ("cache", 2, 2, 18, 1)
    assert found["bytes"] == sum(path.stat().st_size for path in (folder / "counted").rglob("*.safetensors"))
    assert found["checkpoint_digests"] == [run(capsys, "info", folder / "vae.safetensors", "--json").result()["digest"]]
