"""Caches: what is done, what is skipped, what is listed, and what is left after accidents."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.cli.running import write_clip
from tests.dataset.files import outputs
from tests.helpers import random_vae
from wan_vae import WanVAE
from wan_vae.dataset import CacheOptions, Extract, LatentDataset, cache_latents, estimate_cache, verify_cache
from wan_vae.dataset.ahead import ReadingAhead
from wan_vae.dataset.engines import is_passing
from wan_vae.errors import LatentsError, UserError
from wan_vae.io import Clip, load_latents, read_clip


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mkv", frames=9, width=32, height=16, fps=Fraction(25))
    write_clip(folder / "sub" / "b.mkv", frames=6, width=19, height=13, fps=Fraction(10))
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(folder / "c.png")
    (folder / "broken.mp4").write_bytes(b"no clip")
    (folder / "a.txt").write_text("first", encoding="utf-8")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_cache_latents_writes_a_file_for_each_clip_and_says_so(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cache_latents(clips, out, vae)
    assert (result.total, result.cached, result.failed, result.outputs, result.frames) == (4, 3, 1, 3, 16)
    assert sorted(outputs(out)) == ["a.mkv.safetensors", "c.png.safetensors", "sub/b.mkv.safetensors"]
    latents, _ = load_latents(out / "sub" / "b.mkv.safetensors")
    video, _ = read_clip(clips / "sub" / "b.mkv")
    padded = torch.nn.functional.pad(video, (0, 1, 0, 1, 0, 1), mode="replicate")
    torch.testing.assert_close(latents, vae.encode(padded))
    records = {record["source"]: record for record in lines(out / "manifest.jsonl")}
    record = records["sub/b.mkv"]
    assert (record["frames"], record["width"], record["height"], record["fps"]) == (6, 19, 13, "10")
    assert (record["duration"], record["shape"], records["a.mkv"]["caption"]) == (0.6, list(latents.shape), "first")
    assert record["mean"] == pytest.approx(latents.double().mean().item(), abs=1e-6)
    assert record["std"] == pytest.approx(latents.double().std(correction=0).item(), rel=1e-6)
    (failure,) = lines(out / "failures.jsonl")
    assert failure["source"] == "broken.mp4"
    assert "cannot be read as a video" in failure["error"]


def test_second_run_does_nothing_and_does_not_load_the_model(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    vae.save(tmp_path / "vae.safetensors")
    first = cache_latents(clips, tmp_path / "out", tmp_path / "vae.safetensors")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    def load(name: str | Path) -> WanVAE:
        pytest.fail("there is nothing to do")

    again = cache_latents(clips, tmp_path / "out", tmp_path / "vae.safetensors", load=load)
    assert (again.kept, again.cached, again.failed) == (first.cached, 0, 1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_what_was_encoded_in_another_dtype_is_encoded_again(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    vae.save(tmp_path / "vae.safetensors")
    path, out = tmp_path / "vae.safetensors", tmp_path / "out"

    def load(dtype: str) -> WanVAE:
        return WanVAE.from_pretrained(path, dtype=dtype)

    assert cache_latents(clips, out, load("float32")).cached == 3
    assert cache_latents(clips, out, load("bfloat16")).cached == 3
    assert load_latents(out / "a.mkv.safetensors")[0].dtype == torch.bfloat16
    assert cache_latents(clips, out, path, options=CacheOptions(dtype="bfloat16")).kept == 3
    assert cache_latents(clips, out, path, options=CacheOptions(dtype="float32")).cached == 3
    assert load_latents(out / "a.mkv.safetensors")[0].dtype == torch.float32
    assert cache_latents(clips, out, load("tf32")).cached == 3
    with pytest.raises(UserError, match="dtype is 'nonsense'"):
        cache_latents(clips, out, path, options=CacheOptions(dtype="nonsense"))


@pytest.mark.parametrize("change", ["clip", "caption", "options", "weights", "output", "manifest"])
def test_what_changed_is_done_again_alone(vae: WanVAE, clips: Path, tmp_path: Path, change: str) -> None:
    out, options, model, redone = tmp_path / "out", CacheOptions(), vae, 1
    cache_latents(clips, out, vae)
    if change == "clip":
        write_clip(clips / "a.mkv", frames=5, width=32, height=16, fps=Fraction(25))
    elif change == "caption":
        (clips / "a.txt").write_text("second", encoding="utf-8")
    elif change == "options":
        options, redone = CacheOptions(fps=Fraction(5)), 3
    elif change == "weights":
        model, redone = random_vae(vae.config, torch.float32, seed=1), 3
    elif change == "output":
        (out / "a.mkv.safetensors").write_bytes(b"cut")
    else:
        manifest = out / "manifest.jsonl"
        manifest.write_text(manifest.read_text(encoding="utf-8")[:-30], encoding="utf-8")  # a process was killed
    result = cache_latents(clips, out, model, options=options)
    assert (result.cached, result.kept) == (redone, 3 - redone)
    assert cache_latents(clips, out, model, options=options).kept == 3


@pytest.mark.skipif(sys.platform == "win32", reason="there locks are not held")
def test_temporary_files_of_killed_runs_are_removed(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / "sub" / ".b.mkv.partial-123-00ff00ff"
    left.parent.mkdir(parents=True)
    for suffix in (".lock", ".safetensors"):
        left.with_name(left.name + suffix).write_bytes(b"half")
    cache_latents(clips, tmp_path / "out", vae)
    assert sorted(path.name for path in left.parent.iterdir()) == ["b.mkv.safetensors"]


def test_failures_are_tried_again_when_asked_or_when_they_change(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache_latents(clips, out, vae)
    assert len(lines(out / "failures.jsonl")) == 1
    cache_latents(clips, out, vae, retry=True)
    assert len(lines(out / "failures.jsonl")) == 1
    (clips / "broken.mp4").write_bytes((clips / "a.mkv").read_bytes())
    result = cache_latents(clips, out, vae)
    assert (result.cached, result.failed) == (1, 0)
    assert lines(out / "failures.jsonl") == []


def test_parts_of_a_clip_are_those_of_its_frames(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    options = CacheOptions(extract=Extract("slide", (5, 1), stride=2))
    cache_latents(clips, tmp_path / "out", vae, options=options)
    video, _ = read_clip(clips / "a.mkv")
    starts = {5: (0, 2, 4), 1: (0, 2, 4, 6, 8)}
    for frames, begins in starts.items():
        for start in begins:
            latents, _ = load_latents(tmp_path / "out" / f"a.mkv_{start:05d}-{frames:03d}.safetensors")
            torch.testing.assert_close(latents, vae.encode(video[:, :, start : start + frames]))
    names = [name for name in outputs(tmp_path / "out") if name.startswith("a.mkv")]
    assert len(names) == 8
    assert "c.png.safetensors" in outputs(tmp_path / "out")


def test_clip_shorter_than_all_parts_is_listed(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(extract=Extract("head", (9,))))
    errors = {failure["source"]: failure["error"] for failure in lines(tmp_path / "out" / "failures.jsonl")}
    assert errors["sub/b.mkv"].endswith("b.mkv has 6 frames, fewer than a part of 9 has.")


def test_musubi_files_of_all_folders_lie_together_named_by_bucket_and_images_by_their_own_size(
    vae: WanVAE, clips: Path, tmp_path: Path
) -> None:
    options = CacheOptions(format="musubi", resolution=(32, 32), extract=Extract("head", (5,)))
    result = cache_latents(clips, tmp_path / "out", vae, options=options)
    assert result.cached == 3
    assert sorted(outputs(tmp_path / "out")) == [
        "a_00000-005_0032x0032_wan.safetensors",
        "b_00000-005_0032x0032_wan.safetensors",
        "c_0030x0020_wan.safetensors",
    ]
    (name, latents), *_ = load_file(tmp_path / "out" / "c_0030x0020_wan.safetensors").items()
    assert (name, latents.dtype) == (f"latents_1x{latents.shape[2]}x{latents.shape[3]}_bfloat16", torch.bfloat16)


def test_source_fps_keeps_the_frames_that_musubi_tuner_keeps(vae: WanVAE, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clip = write_clip(tmp_path / "clips" / "a.mkv", frames=16, width=32, height=32, fps=Fraction(25))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "clips" / "b.png")
    options = CacheOptions(format="musubi", source_fps=24.0, resolution=(32, 32), extract=Extract("chunk", (5,)))
    assert estimate_cache(tmp_path / "clips", tmp_path / "out", vae, options=options).outputs == 3
    cache_latents(tmp_path / "clips", tmp_path / "out", vae, options=options)
    video, _ = read_clip(clip)
    for start, frames in ((0, [0, 2, 3, 5, 7]), (5, [8, 9, 11, 12, 14])):
        name = f"a_{start:05d}-005_0032x0032_wan.safetensors"
        (latents,) = load_file(tmp_path / "out" / name).values()
        torch.testing.assert_close(latents, vae.encode(video[:, :, frames])[0].bfloat16())
    assert (tmp_path / "out" / "b_0032x0032_wan.safetensors").is_file()
    (record,) = [record for record in lines(tmp_path / "out" / "manifest.jsonl") if record["start"] == 5]
    assert (record["fps"], record["frames"], record["duration"]) == ("16", 5, 0.3125)


def test_source_fps_of_a_span_of_frames_is_a_failure(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    listed = tmp_path / "clips.jsonl"
    listed.write_text('{"path": "clips/a.mkv", "start": 2}\n', encoding="utf-8")
    cache_latents(listed, tmp_path / "out", vae, options=CacheOptions(format="musubi", source_fps=24.0))
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert "has a start or a stop, which are not possible with source_fps" in failure["error"]


def test_animations_are_cut_as_videos_are(vae: WanVAE, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    pictures = [Image.new("RGB", (16, 16), (20 * number, 0, 0)) for number in range(7)]
    pictures[0].save(tmp_path / "clips" / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    extract = Extract("chunk", (5, 1))
    cache_latents(tmp_path / "clips", tmp_path / "out", vae, options=CacheOptions(format="musubi", extract=extract))
    starts = {(0, 5), *((start, 1) for start in range(7))}
    assert set(outputs(tmp_path / "out")) == {f"a_{a:05d}-{n:03d}_0016x0016_wan.safetensors" for a, n in starts}


def test_i2v_adds_the_first_frame_with_zeros_and_a_mask(
    vae: WanVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WanVAE, "default_chunk_size", lambda *_: 1)  # several passes
    (tmp_path / "clips").mkdir()
    clip = write_clip(tmp_path / "clips" / "a.mkv", frames=9, width=32, height=16, fps=Fraction(25))
    write_image = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save
    write_image(tmp_path / "clips" / "b.png")
    cache_latents(tmp_path / "clips", tmp_path / "out", vae, options=CacheOptions(format="musubi", i2v=True))
    for path, name in ((clip, "a_00000-009_0032x0016"), (tmp_path / "clips" / "b.png", "b_0016x0016")):
        video, _ = read_clip(path)
        conditions = torch.zeros_like(video)
        conditions[:, :, 0] = video[:, :, 0]
        latents, image = vae.encode(video)[0], vae.encode(conditions)[0]
        size = "x".join(map(str, latents.shape[1:]))
        stored = load_file(tmp_path / "out" / f"{name}_wan.safetensors")
        assert list(stored) == [f"latents_{size}_bfloat16", f"latents_image_{size}_bfloat16"]
        torch.testing.assert_close(stored[f"latents_{size}_bfloat16"], latents.bfloat16())
        mask, image_stored = stored[f"latents_image_{size}_bfloat16"].split([4, 16])
        torch.testing.assert_close(image_stored, image.bfloat16())
        assert (mask[:, 0] == 1).all()
        assert (mask[:, 1:] == 0).all()
    items = LatentDataset(tmp_path / "out")
    assert [item["latents"].shape[0] for item in items] == [16, 16]  # type: ignore[attr-defined]
    assert [record.shape[1] for record in items.records] == [16, 16]


def test_without_buckets_every_clip_gets_the_resolution(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    options = CacheOptions(format="musubi", resolution=(48, 16), buckets=False, extract=Extract("head", (5,)))
    cache_latents(clips, tmp_path / "out", vae, options=options)
    names = [f"{name}_00000-005_0048x0016_wan.safetensors" for name in ("a", "b")]
    assert sorted(outputs(tmp_path / "out")) == [*names, "c_0030x0020_wan.safetensors"]
    (latents,) = load_file(tmp_path / "out" / "c_0030x0020_wan.safetensors").values()
    side = vae.config.spatial_compression
    assert latents.shape[2:] == (16 // side, 48 // side)


def test_two_clips_with_one_cache_file_of_musubi_are_told(vae: WanVAE, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a.mkv", "a.avi"):
        write_clip(tmp_path / "clips" / name, frames=5, width=16, height=16, fps=Fraction(16))
    result = cache_latents(tmp_path / "clips", tmp_path / "out", vae, options=CacheOptions(format="musubi"))
    assert (result.cached, result.failed) == (1, 1)
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert "would have the same file as a.avi" in failure["error"]


def test_shards_together_do_what_one_process_does(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    cache_latents(clips, tmp_path / "one", vae)
    counts = [cache_latents(clips, tmp_path / "three", vae, shard=(number, 3)).total for number in range(3)]
    assert sum(counts) == 4
    assert outputs(tmp_path / "three") == outputs(tmp_path / "one")
    assert cache_latents(clips, tmp_path / "three", vae).kept == 3


@pytest.mark.parametrize(
    "options",
    [
        CacheOptions(),
        CacheOptions(posterior=True),
        CacheOptions(format="musubi", resolution=(32, 32), extract=Extract("head", (5,))),
        CacheOptions(format="musubi", resolution=(32, 32), extract=Extract("head", (5,)), i2v=True),
    ],
)
def test_estimate_cache_is_what_is_done(vae: WanVAE, clips: Path, tmp_path: Path, options: CacheOptions) -> None:
    expected = estimate_cache(clips, tmp_path / "out", vae, options=options)
    result = cache_latents(clips, tmp_path / "out", vae, options=options)
    assert (expected.clips, expected.outputs, expected.frames) == (result.cached, result.outputs, result.frames)
    assert (expected.failed, expected.seconds) == (result.failed, None)
    contents = outputs(tmp_path / "out").values()
    headers = sum(8 + int.from_bytes(content[:8], "little") for content in contents)
    assert expected.bytes == sum(map(len, contents)) - headers
    later = estimate_cache(clips, tmp_path / "out", vae, options=CacheOptions(size=(16, 16)))
    assert later.seconds is not None
    assert later.seconds > 0


def test_estimate_cache_of_a_share_that_is_none_is_refused(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the shard is 5; it must be a whole number from 0 to 1"):
        estimate_cache(clips, tmp_path / "out", vae, shard=(5, 2))


def test_stretching_is_told_once_for_all_clips(
    vae: WanVAE, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(size=(16, 16)))
    (notice,) = [message for message in caplog.messages if "stretched" in message]
    assert notice.startswith("Clips of another shape than 16x16 are stretched to it; --fit crop")
    caplog.clear()
    cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(size=(16, 16), fit="stretch"))
    assert not [message for message in caplog.messages if "stretched" in message]


def test_verify_cache_finds_what_differs(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    options = CacheOptions()
    cache_latents(clips, tmp_path / "out", vae, options=options)
    found = verify_cache(clips, tmp_path / "out", vae, options=options)
    assert (found.verified, found.differing) == (3, [])
    path = tmp_path / "out" / "a.mkv.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert verify_cache(clips, tmp_path / "out", vae, options=options).differing == ["a.mkv.safetensors"]


def test_verify_cache_with_other_options_says_so(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache_latents(clips, out, vae, options=CacheOptions(fps=5))
    with pytest.raises(UserError, match="was made with other options than these; give those that it was made with"):
        verify_cache(clips, out, vae)
    assert verify_cache(clips, out, vae, options=CacheOptions(fps=5)).differing == []


def test_verify_cache_says_which_clip_is_gone(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    listed = [clips / "a.mkv"]
    cache_latents(listed, tmp_path / "out", vae)
    listed[0].unlink()
    with pytest.raises(UserError, match=r"a\.mkv cannot be encoded again: .*a\.mkv does not exist"):
        verify_cache(listed, tmp_path / "out", vae, options=CacheOptions())


def test_clip_of_fewer_frames_than_its_file_announces_fails_with_a_sentence(
    vae: WanVAE, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = Clip.chunks
    monkeypatch.setattr(Clip, "chunks", lambda clip, count: islice(chunks(clip, 1), clip.info.frames - 2))
    result = cache_latents([clips / "a.mkv"], tmp_path / "out", vae)
    assert (result.cached, result.failed) == (0, 1)
    assert "ends after 7 of the 9 frames that it announces" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_parts_of_other_options_are_not_of_the_cache_any_more(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache_latents(clips, out, vae, options=CacheOptions(extract=Extract("chunk", (1,))))
    assert len(LatentDataset(out)) == 9 + 6 + 1
    cache_latents(clips, out, vae)
    assert [record.parts for record in LatentDataset(out).records] == [1, 1, 1]


@pytest.mark.parametrize("store", [False, True])
def test_files_of_other_options_stay_with_a_notice_until_they_are_pruned(
    vae: WanVAE, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, store: bool
) -> None:
    out = tmp_path / "out"
    (clips / "c.png").unlink()
    (clips / "broken.mp4").unlink()
    (clips / "sub" / "b.mkv").unlink()
    place, url = (tmp_path / "store", f"file://{tmp_path}/store") if store else (out, None)
    long, short = (CacheOptions(extract=Extract("head", (length,)), store=url) for length in (5, 1))
    cache_latents(clips, out, vae, options=long)
    former = outputs(place)
    assert "as they were" not in caplog.text
    for _ in range(2):
        caplog.clear()
        cache_latents(clips, out, vae, options=short)
        assert f"also holds {next(iter(former))}" in caplog.text.replace(f"file://{tmp_path}/store/", "")
    assert len(outputs(place)) == 2
    cache_latents(clips, out, vae, options=short, shard=(0, 2), prune=True)
    assert len(outputs(place)) == 2
    assert cache_latents(clips, out, vae, options=short, prune=True).pruned == 1
    assert len(outputs(place)) == 1
    assert not outputs(place).keys() & former.keys()
    assert cache_latents(clips, out, vae, options=short).kept == 1


def test_the_line_that_was_written_last_counts_in_whichever_file(
    vae: WanVAE, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    cache_latents([clips / "a.mkv"], out, vae, options=CacheOptions(length=1))
    monkeypatch.setattr(time, "time_ns", lambda: 1)  # of a machine whose clock is late
    found = [cache_latents([clips / "a.mkv"], out, vae, options=CacheOptions(length=5), shard=(0, 2)) for _ in range(2)]
    assert [(result.cached, result.kept) for result in found] == [(1, 0), (0, 1)]
    assert LatentDataset(out)[0]["latents"].shape[1] == 3
    assert cache_latents([clips / "a.mkv"], out, vae, options=CacheOptions(length=1)).cached == 1
    assert LatentDataset(out)[0]["latents"].shape[1] == 1


def test_lines_without_a_time_are_older_than_those_with(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache_latents([clips / "a.mkv"], out, vae, options=CacheOptions(length=1))
    (record,) = lines(out / "manifest.jsonl")
    assert abs(record.pop("written") - time.time_ns()) < 600e9
    (out / "manifest.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert cache_latents([clips / "a.mkv"], out, vae, options=CacheOptions(length=1)).kept == 1
    cache_latents([clips / "a.mkv"], out, vae, options=CacheOptions(length=5), shard=(0, 2))
    assert [record.frames for record in LatentDataset(out).records] == [5]


def test_latents_of_another_length_than_the_manifest_says_are_refused(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    cache_latents([clips / "a.mkv"], tmp_path / "long", vae)
    cache_latents([clips / "a.mkv"], tmp_path / "out", vae, options=CacheOptions(length=1))
    (tmp_path / "long" / "a.mkv.safetensors").replace(tmp_path / "out" / "a.mkv.safetensors")
    with pytest.raises(UserError, match=r"holds latents of \(1, 16, 5, 8, 16\), and manifest.jsonl says \(1, 16, 1"):
        LatentDataset(tmp_path / "out")[0]


def test_names_that_are_no_text_and_lines_that_are_no_records_do_no_harm(
    vae: WanVAE, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in (b"\xff.mkv", b"\xfe.mp4"):
        content = (clips / "a.mkv").read_bytes() if name.endswith(b"mkv") else b"no clip"
        (clips / os.fsdecode(name)).write_bytes(content)
    cache_latents(clips, out, vae)
    with (out / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"source": 3}\n[]\n{"source": "a.mkv", "key": {}}\n')
    result = cache_latents(clips, out, vae)
    assert (result.kept, result.cached, result.failed) == (4, 0, 2)


@pytest.mark.parametrize("name", ["manifest.jsonl", "failures.jsonl"])
def test_file_of_another_program_is_not_written_to(vae: WanVAE, clips: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"path": "a.mkv"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=f"{name} is not of a cache"):
        cache_latents(clips, out, vae)
    assert outputs(out) == {}
    assert (out / name).read_text(encoding="utf-8") == '{"path": "a.mkv"}\n'


def test_clip_that_changed_and_fails_is_no_longer_of_the_cache(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache_latents(clips, out, vae)
    whole = (clips / "a.mkv").read_bytes()
    (clips / "a.mkv").write_bytes(b"no clip any more")
    assert cache_latents(clips, out, vae).failed == 2
    assert [record.source for record in LatentDataset(out).records] == ["c.png", "sub/b.mkv"]
    assert (out / "a.mkv.safetensors").exists()
    (clips / "a.mkv").write_bytes(whole)
    assert (cache_latents(clips, out, vae).cached, len(LatentDataset(out))) == (1, 3)


def test_outputs_of_clips_that_are_gone_stay_with_a_notice_until_they_are_pruned(
    vae: WanVAE, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    cache_latents(clips, out, vae)
    (clips / "a.mkv").unlink()
    (clips / "sub" / "b.mkv").rename(clips / "sub" / "d.mkv")
    for _ in range(2):
        caplog.clear()
        assert cache_latents(clips, out, vae).pruned == 0
        assert "also holds outputs of a.mkv, sub/b.mkv, which the source does not name" in caplog.text
        assert len(LatentDataset(out)) == 4
    assert cache_latents(clips, out, vae, prune=True).pruned == 2
    assert sorted(outputs(out)) == ["c.png.safetensors", "sub/d.mkv.safetensors"]
    caplog.clear()
    assert cache_latents(clips, out, vae).kept == 2
    assert "also holds" not in caplog.text
    assert [record.source for record in LatentDataset(out).records] == ["c.png", "sub/d.mkv"]


@pytest.mark.parametrize("reason", ["link", "unreadable"])
def test_outputs_of_clips_in_a_folder_that_is_left_out_are_not_pruned(
    vae: WanVAE, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    out = tmp_path / "out"
    cache_latents(clips, out, vae)
    if reason == "link":
        (clips / "sub").rename(tmp_path / "elsewhere")
        (clips / "sub").symlink_to(tmp_path / "elsewhere")
    else:
        scandir = os.scandir

        def fail(path: Any) -> Any:
            if Path(path) == clips / "sub":
                raise OSError(errno.ESTALE, "Stale file handle", os.fspath(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", fail)
    (clips / "a.mkv").unlink()
    assert estimate_cache(clips, out, vae, prune=True).pruned == 1
    assert cache_latents(clips, out, vae, prune=True).pruned == 1
    assert sorted(outputs(out)) == ["c.png.safetensors", "sub/b.mkv.safetensors"]


def test_clip_that_is_missing_for_a_while_keeps_its_outputs(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out, listed = tmp_path / "out", tmp_path / "list.txt"
    listed.write_text("clips/a.mkv\nclips/c.png\n", encoding="utf-8")
    cache_latents(listed, out, vae)
    clips.rename(tmp_path / "unmounted")
    missing = cache_latents(listed, out, vae, prune=True)
    assert (missing.failed, missing.pruned) == (2, 0)
    assert len(LatentDataset(out)) == 2
    (tmp_path / "unmounted").rename(clips)
    again = cache_latents(listed, out, vae, prune=True)
    assert (again.kept, again.cached, again.failed, again.pruned) == (2, 0, 0, 0)
    assert lines(out / "failures.jsonl") == []


def test_spans_with_the_same_frames_are_told_and_the_first_stays(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    rows = [{"path": "a.mkv", "start": 0, "stop": stop} for stop in (9, 20)]
    (clips / "list.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for kept in (0, 1):
        result = cache_latents(clips / "list.jsonl", tmp_path / "out", vae)
        assert (result.kept, result.cached, result.failed) == (kept, 1 - kept, 1)
        assert [record.source for record in LatentDataset(tmp_path / "out").records] == ["a.mkv[0:9]"]
    (failure,) = lines(tmp_path / "out" / "failures.jsonl")
    assert "it has the same frames as a.mkv[0:9], and so the same file" in failure["error"]


@pytest.mark.parametrize("output", ["../victim.txt", "{folder}/victim.txt"])
def test_manifest_that_names_files_outside_of_the_cache_is_refused(
    vae: WanVAE, clips: Path, tmp_path: Path, output: str
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    cache_latents(clips, out, vae)
    victim.write_text("mine", encoding="utf-8")
    text = (out / "manifest.jsonl").read_text(encoding="utf-8")
    changed = text.replace("a.mkv.safetensors", output.format(folder=tmp_path))
    (out / "manifest.jsonl").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.jsonl cannot be used: an output is .*victim\.txt', outside of the"):
        cache_latents(clips, out, vae, prune=True)
    assert victim.read_text(encoding="utf-8") == "mine"


def test_file_that_no_cache_made_is_not_replaced(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.mkv.safetensors").write_text("my own file", encoding="utf-8")
    save_file({"weight": torch.zeros(3)}, out / "c.png.safetensors")
    result = cache_latents(clips, out, vae)
    assert (result.cached, result.failed) == (1, 3)
    assert (out / "a.mkv.safetensors").read_text(encoding="utf-8") == "my own file"
    assert list(load_file(out / "c.png.safetensors")) == ["weight"]
    errors = " ".join(failure["error"] for failure in lines(out / "failures.jsonl"))
    assert errors.count("is no file of a cache and is not replaced; move it, or name another folder") == 2


def test_folder_of_images_whose_file_is_overwritten_is_encoded_again(vae: WanVAE, tmp_path: Path) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    assert cache_latents([folder], tmp_path / "out", vae).cached == 1
    assert cache_latents([folder], tmp_path / "out", vae).kept == 1
    Image.new("RGB", (16, 16), (0, 200, 0)).save(folder / "1.png")
    assert cache_latents([folder], tmp_path / "out", vae).cached == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_ends_the_run_and_blames_no_clip(
    vae: WanVAE, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Any, latents: Any) -> None:
        raise LatentsError("cannot be written") from OSError(number, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wan_vae.io.latents_file.LatentsWriter.write", fail)
        with pytest.raises(UserError, match=r"The disk of .* is full; make room and start again"):
            cache_latents(clips, tmp_path / "out", vae)
    assert cache_latents(clips, tmp_path / "out", vae).cached == 3


def test_faults_of_disks_and_networks_are_tried_again(
    vae: WanVAE, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, latents: Any) -> None:
        raise LatentsError("cannot be written") from OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("wan_vae.io.latents_file.LatentsWriter.write", fail)
        assert cache_latents(clips, tmp_path / "out", vae).failed == 4
    result = cache_latents(clips, tmp_path / "out", vae)
    assert (result.cached, result.failed) == (3, 1)


def test_only_what_is_the_fault_of_a_clip_is_not_tried_again(
    vae: WanVAE, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert cache_latents(clips, out, vae, memory=1).failed == 4
    caplog.clear()
    result = cache_latents(clips, out, vae)
    assert (result.cached, result.failed) == (3, 1)
    assert "broken.mp4 failed before and did not change" in caplog.text
    assert not any("a.mkv" in record.message for record in caplog.records)


def test_shortages_of_memory_are_no_fault_of_a_clip() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55)
    assert is_passing(error.value)
    assert not is_passing(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_memory_that_is_no_budget_is_refused_at_once(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The memory is 'lots'"):
        cache_latents(clips, tmp_path / "out", vae, memory="lots")
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_links_to_folders_are_left_out_with_a_notice(
    vae: WanVAE, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (clips / "more").symlink_to(clips / "sub")
    assert cache_latents(clips, tmp_path / "out", vae).total == 4
    assert f"Folders are left out: {clips / 'more'} (a link)." in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "0 frames a second is not possible"),
        ({"frames": (5, 2)}, "frames is 5:2, which holds no frame"),
        ({"fit": "crop"}, "there is no size for clips to fit"),
    ],
)
def test_options_that_no_clip_could_have_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CacheOptions(**options)


def test_exception_of_progress_ends_the_run_and_what_was_done_stays(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    def stop(result: Any) -> None:
        if result.cached:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        cache_latents(clips, tmp_path / "out", vae, progress=stop)
    assert len(lines(tmp_path / "out" / "manifest.jsonl")) == 1
    assert cache_latents(clips, tmp_path / "out", vae).kept == 1


def test_latent_dataset_gives_what_the_files_hold(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    cache_latents(clips, tmp_path / "out", vae)
    dataset = LatentDataset(tmp_path / "out")
    assert [record.source for record in dataset.records] == ["a.mkv", "c.png", "sub/b.mkv"]
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=1)
    for item, record in zip(loader, dataset.records, strict=True):
        latents, _ = load_latents(tmp_path / "out" / record.output)
        assert torch.equal(item["latents"], latents)
        assert (item["source"], item["caption"]) == ([record.source], [record.caption or ""])
    with pytest.raises(UserError, match=r"is no cache: it has no manifest.jsonl"):
        LatentDataset(clips)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "zip"}, "format is 'zip'; a cache is of wan-vae, musubi, tensor"),
        ({"values": "raw"}, "values is 'raw'; it is raw or normalized, for the format tensor alone"),
        ({"size": (8, 8), "resolution": (64, 64)}, "size and resolution were both given"),
        ({"resolution": (8, 64)}, "resolution has a side of 8; sides are from 16 on"),
        ({"source_fps": 30.0}, "source_fps is for the format musubi, without fps"),
        ({"source_fps": 30.0, "fps": 16, "format": "musubi"}, "source_fps is for the format musubi, without fps"),
        ({"source_fps": float("nan"), "format": "musubi"}, "source_fps is nan; it must be from 0.001 to 1000"),
        ({"resolution": "832x480"}, "resolution is '832x480'; it must be None or two whole numbers"),
        ({"resolution": (832.5, 480)}, r"A side of resolution is 832\.5; it must be a whole number"),
        ({"extract": "head"}, "extract is 'head'; it must be None or an Extract"),
        ({"i2v": True}, "i2v is for the format musubi, not wan-vae"),
        ({"buckets": False}, "Without buckets, clips get the size of resolution, which must be given"),
    ],
)
def test_options_that_are_not_possible_get_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CacheOptions(**arguments)


def test_reading_ahead_keeps_the_order_raises_in_place_and_ends_its_threads() -> None:
    begun: list[int] = []

    def read(job: int) -> Any:
        begun.append(job)
        for item in range(100):
            if (job, item) == (1, 3):
                raise ValueError("damaged")
            yield job, item

    with ReadingAhead([0, 1, 2, 3], read, threads=2, held=2) as ahead:
        for job, items in ahead:
            if job == 1:
                with pytest.raises(ValueError, match="damaged"):
                    list(items)
            elif job == 2:
                assert next(items) == (2, 0)  # the rest is not wanted
            elif job == 3:
                break
            else:
                assert list(items) == [(0, item) for item in range(100)]
    assert begun == [0, 1, 2, 3]


RUN = """
import sys
from wan_vae.dataset import cache_latents
cache_latents(sys.argv[1], sys.argv[2], sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_and_resumed_runs_leave_the_bytes_of_one_run(vae: WanVAE, tmp_path: Path) -> None:
    folder, draw = tmp_path / "clips", random.Random(5)
    folder.mkdir()
    for number in range(24):
        write_clip(folder / f"{number}.mkv", frames=9, width=64, height=48, fps=Fraction(25))
    vae.save(tmp_path / "vae.safetensors")
    cache_latents(folder, tmp_path / "whole", tmp_path / "vae.safetensors")
    arguments = [sys.executable, "-c", RUN, str(folder), str(tmp_path / "out"), str(tmp_path / "vae.safetensors")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(10):
        process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
        manifest, wanted = tmp_path / "out" / "manifest.jsonl", draw.randint(0, 2)
        before = len(lines_or_none(manifest))
        while process.poll() is None and len(lines_or_none(manifest)) < before + wanted:
            time.sleep(0.01)
        time.sleep(0.05 * draw.random())
        process.kill()
        process.wait()
    subprocess.run(arguments, env=environment, check=True)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))  # no files of killed processes


def lines_or_none(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
