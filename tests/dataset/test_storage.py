"""Caches whose outputs go to a storage: fsspec's memory and its files stand for buckets."""

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import torch
from fsspec.core import url_to_fs

from tests.cli.running import run
from tests.dataset.files import outputs
from wan_vae import WanVAE
from wan_vae.dataset import CacheOptions, LatentDataset, cache_latents, estimate_cache, pack_latents, verify_cache
from wan_vae.dataset.storage import Store
from wan_vae.errors import UserError


@pytest.fixture
def url() -> Iterator[str]:
    url = f"memory://{uuid4().hex}/latents"
    yield url
    fsspec.filesystem("memory").rm(url.removesuffix("/latents"), recursive=True)


def stored(url: str) -> dict[str, bytes]:
    files, root = url_to_fs(url)
    return {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}


def test_outputs_go_to_the_store_and_lists_stay(vae: WanVAE, clips: Path, tmp_path: Path, url: str) -> None:
    cache_latents(clips, tmp_path / "here", vae)
    cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(store=url))
    assert stored(url) == outputs(tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.jsonl"]


def test_second_run_redoes_what_is_not_whole_in_the_store(vae: WanVAE, clips: Path, tmp_path: Path, url: str) -> None:
    options = CacheOptions(store=url)
    cache_latents(clips, tmp_path / "out", vae, options=options)
    before = stored(url)
    assert cache_latents(clips, tmp_path / "out", vae, options=options).kept == 3
    files, root = url_to_fs(url)
    files.rm(f"{root}/a.mkv.safetensors")
    files.pipe_file(f"{root}/s.ub/c.mkv.safetensors", b"half")
    expected = estimate_cache(clips, tmp_path / "out", vae, options=options)
    again = cache_latents(clips, tmp_path / "out", vae, options=options)
    assert (expected.clips, again.cached, again.kept) == (2, 2, 1)
    assert stored(url) == before


def test_another_store_is_filled_anew(vae: WanVAE, clips: Path, tmp_path: Path, url: str) -> None:
    cache_latents(clips, tmp_path / "out", vae)
    assert cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(store=url)).cached == 3
    assert stored(url) == outputs(tmp_path / "out")


def test_prune_removes_from_the_store_whatever_this_run_writes_to(
    vae: WanVAE, clips: Path, tmp_path: Path, url: str
) -> None:
    cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(store=url))
    before = stored(url)
    (clips / "a.mkv").unlink()
    assert cache_latents(clips, tmp_path / "out", vae, prune=True).pruned == 1
    del before["a.mkv.safetensors"]
    assert stored(url) == before


def test_estimate_makes_nothing_in_the_store(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    place = tmp_path / "store" / "latents"
    expected = estimate_cache(clips, tmp_path / "out", vae, options=CacheOptions(store=f"file://{place}"))
    assert expected.clips == 3
    assert not place.parent.exists()


def test_readers_find_outputs_in_the_store(vae: WanVAE, clips: Path, tmp_path: Path, url: str) -> None:
    cache_latents(clips, tmp_path / "here", vae)
    options = CacheOptions(store=url)
    cache_latents(clips, tmp_path / "out", vae, options=options)
    here = LatentDataset(tmp_path / "here")
    there = pickle.loads(pickle.dumps(LatentDataset(tmp_path / "out")))
    for one, other in zip(here, there, strict=True):  # type: ignore[call-overload]
        assert torch.equal(one.pop("latents"), other.pop("latents"))
        assert one == other
    for name in ("here", "out"):
        pack_latents(tmp_path / name, tmp_path / f"{name}_shards", format="webdataset")
    shards = [(tmp_path / f"{name}_shards" / "00000.tar").read_bytes() for name in ("here", "out")]
    assert shards[0] == shards[1]
    assert verify_cache(clips, tmp_path / "out", vae, options=options).differing == []
    files, root = url_to_fs(url)
    (tmp_path / "other").write_bytes(b"other")
    files.put_file(str(tmp_path / "other"), f"{root}/a.mkv.safetensors")
    assert verify_cache(clips, tmp_path / "out", vae, options=options).differing == [
        files.unstrip_protocol(f"{root}/a.mkv.safetensors")
    ]


def test_nothing_is_left_in_the_store_of_a_clip_that_fails(
    vae: WanVAE, clips: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def fails_at_b(self: Store, path: Path, below: Path) -> str:
        if below.name.startswith("b"):
            raise UserError("the bucket is full.")
        return put(self, path, below)

    monkeypatch.setattr(Store, "put", fails_at_b)
    result = cache_latents(clips, tmp_path / "out", vae, options=CacheOptions(store=url))
    assert (result.cached, result.failed) == (2, 1)
    assert sorted(stored(url)) == ["a.mkv.safetensors", "s.ub/c.mkv.safetensors"]
    assert json.loads((tmp_path / "out" / "failures.jsonl").read_text())["error"] == "the bucket is full."


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("bucket/latents", "store is 'bucket/latents'; write it as a URL"),
        ("nowhere://bucket/latents", "nowhere://bucket/latents cannot be used (Protocol not known: nowhere"),
        ("file://{file}/latents", "cannot be created"),
    ],
)
def test_store_that_cannot_be_used_is_refused_before_anything_is_encoded(
    clips: Path, tmp_path: Path, store: str, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        cache_latents(clips, tmp_path / "out", "wan2.1", options=CacheOptions(store=store.format(file=clips / "a.mkv")))


def test_processes_and_commands_share_a_store(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = ["--checkpoint", "nano", "--json"]
    url = (tmp_path / "bucket").as_uri()
    cached = run(capsys, "cache", clips, tmp_path / "out", *vae, "--size", "16x16", "--store", url, "--devices", 2)
    assert cached.result()["cached"] == 3
    assert len(outputs(tmp_path / "bucket")) == 3
    assert outputs(tmp_path / "out") == {}
    decoded = run(capsys, "decode", tmp_path / "out", tmp_path / "clip.mp4", *vae, "--index", 2)
    assert decoded.result()["frames"] == 5
