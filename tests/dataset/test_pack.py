"""Shards of a cache: what they hold, what a second run does, what is refused, and how they are read back."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.running import run
from wan_vae import WanVAE
from wan_vae.dataset import (
    CacheOptions,
    LatentDataset,
    LatentStream,
    PackResult,
    cache_latents,
    pack_latents,
    shards,
)
from wan_vae.errors import UserError
from wan_vae.posterior import LatentStatistics


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    (folder / "s.ub").mkdir(parents=True)
    save_file({"prompt": torch.randn(1, 7, 12).bfloat16()}, folder / "a.mkv.safetensors")
    np.save(folder / "b.x.npy", np.random.default_rng(0).normal(size=(5, 12)).astype(np.float16))
    save_file({"prompt": torch.randn(3, 12)}, folder / "s.ub" / "c.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_shards_hold_the_items_of_the_cache_in_their_order(cache: Path, tmp_path: Path, name: str) -> None:
    item = LatentDataset(cache).records[0].bytes
    result = pack_latents(cache, tmp_path / "out", format=name, shard_size=2 * item)
    assert (result.items, result.shards, result.written) == (3, 2, 2)
    assert result.bytes == sum(len(content) for path, content in contents(tmp_path / "out").items() if path[0] == "0")
    dataset, stream = LatentDataset(cache), list(LatentStream(tmp_path / "out"))
    assert [found["source"] for found in stream] == ["a.mkv", "b.x.mkv", "s.ub/c.mkv"]
    for index, found in enumerate(stream):
        expected = dataset[index]
        assert torch.equal(found.pop("latents"), expected.pop("latents"))
        assert found == expected


def test_parquet_columns_describe_the_clip(cache: Path, tmp_path: Path) -> None:
    pack_latents(cache, tmp_path / "out")
    row, record = rows(tmp_path / "out" / "00000.parquet")[0], LatentDataset(cache).records[0]
    assert list(row) == list(shards.COLUMNS)
    assert (row["latents_shape"], row["latents_dtype"], row["values"]) == ([16, 3, 8, 8], "float32", "normalized")
    assert (row["caption"], row["frames"], row["width"], row["height"]) == ("Ein Käfer.", 5, 16, 16)
    assert (row["fps"], row["duration"]) == (30000 / 1001, record.duration)
    assert row["checkpoint"] == record.key.checkpoint


def test_webdataset_shard_holds_the_files_of_the_cache(cache: Path, tmp_path: Path) -> None:
    pack_latents(cache, tmp_path / "out", format="webdataset")
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["00000_00000.json", "00000_00000.safetensors", "00000_00000.txt"]
        assert all((entry.mtime, entry.uid, entry.uname) == (0, 0, "") for entry in tar)
        files = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert files["00000_00001.safetensors"] == (cache / "b.x.mkv.safetensors").read_bytes()
    assert files["00000_00000.txt"].decode() == "Ein Käfer."
    assert json.loads(files["00000_00000.json"])["shape"] == [16, 3, 8, 8]


def test_fastvideo_rows_hold_raw_means_and_embeddings_in_float32(
    cache: Path, text: Path, tmp_path: Path, vae: WanVAE
) -> None:
    pack_latents(cache, tmp_path / "out", format="fastvideo", text=text)
    found = rows(tmp_path / "out" / "combined_parquet_dataset" / "worker_0" / "data_chunk_0.parquet")
    assert [row["id"] for row in found] == ["a.mkv", "b.x.mkv", "s.ub/c.mkv"]
    assert [row["file_name"] for row in found] == ["a.mkv", "b.x.mkv", "c.mkv"]
    row = found[1]
    latents = LatentDataset(cache)[1]["latents"]
    raw = LatentStatistics.of(vae.config, torch.float32, torch.device("cpu")).denormalized(latents[None])[0]
    stored = np.frombuffer(row["vae_latent_bytes"], np.float32).reshape(row["vae_latent_shape"])
    assert np.array_equal(stored, raw.numpy())
    embedding = np.frombuffer(row["text_embedding_bytes"], np.float32).reshape(row["text_embedding_shape"])
    assert np.array_equal(embedding, np.load(text / "b.x.npy").astype(np.float32))
    assert [row["text_embedding_shape"] for row in found] == [[7, 12], [5, 12], [3, 12]]
    assert (row["media_type"], row["num_frames"], row["width"], row["vae_latent_dtype"]) == ("video", 3, 16, "float32")


@pytest.mark.parametrize("name", ["parquet", "webdataset", "fastvideo"])
def test_second_run_keeps_shards_and_redoes_those_that_changed(
    vae: WanVAE, clips: Path, cache: Path, text: Path, tmp_path: Path, name: str
) -> None:
    def packed(out: str) -> PackResult:
        return pack_latents(
            cache, tmp_path / out, format=name, shard_size=1, text=text if name == "fastvideo" else None
        )

    packed("out")
    before = contents(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = packed("out")
    assert (again.written, again.kept) == (0, 3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    packed("other")
    assert contents(tmp_path / "other") == before
    (clips / "a.txt").write_text("Two.", encoding="utf-8")
    cache_latents(clips, cache, vae)
    assert (packed("out").written, packed("out").kept) == (1, 3)
    changed = {path for path, content in contents(tmp_path / "out").items() if content != before[path]}
    assert len(changed) == 2
    assert "shards.json" in changed
    damaged = next(path for path in (tmp_path / "out").rglob("*") if path.suffix in (".parquet", ".tar"))
    damaged.write_bytes(b"cut")
    assert packed("out").written == 1


def test_shards_of_a_larger_cache_before_are_removed_and_strangers_stay(cache: Path, tmp_path: Path) -> None:
    pack_latents(cache, tmp_path / "out", format="webdataset", shard_size=1)
    (tmp_path / "out" / "note.tar").write_bytes(b"mine")
    result = pack_latents(cache, tmp_path / "out", format="webdataset")
    assert (result.shards, result.written, result.removed) == (1, 1, 2)
    assert sorted(contents(tmp_path / "out")) == ["00000.tar", "note.tar", "shards.json"]


def test_run_that_was_stopped_goes_on_where_it_was(cache: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        pack_latents(cache, tmp_path / "out", format="webdataset", shard_size=1, progress=stop)
    assert sorted(contents(tmp_path / "out")) == ["00000.tar", "shards.json"]
    # A shard may have its name before the list says so.
    (tmp_path / "out" / "00001.tar").write_bytes(b"whole, perhaps")
    result = pack_latents(cache, tmp_path / "out", format="webdataset", shard_size=1)
    assert (result.written, result.kept) == (2, 1)


def test_clips_that_failed_are_named_in_a_notice(
    vae: WanVAE, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (clips / "broken.mp4").write_bytes(b"no clip")
    cache_latents(clips, tmp_path / "cache", vae)
    caplog.clear()
    pack_latents(tmp_path / "cache", tmp_path / "out", format="webdataset")
    assert "lists clips that failed (1); they are not in the shards" in caplog.records[0].message


def edit_text(folder: Path, action: str) -> None:
    if action == "missing":
        (folder / "b.x.npy").unlink()
    else:
        np.save(folder / "b.x.npy", np.zeros((2, 3, 4), np.float32))


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ("missing", r"holds no text embedding of b.x.mkv: one of b.x.mkv.safetensors, b.x.mkv.npy, b.x.safetensors"),
        ("shape", r"b.x.npy holds \(2, 3, 4\); a text embedding is one tensor of floats \(tokens, width\)"),
    ],
)
def test_fastvideo_text_that_is_not_there_gets_a_sentence(
    cache: Path, text: Path, tmp_path: Path, action: str, sentence: str
) -> None:
    edit_text(text, action)
    with pytest.raises(UserError, match=sentence):
        pack_latents(cache, tmp_path / "out", format="fastvideo", text=text)
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "zip"}, "format is 'zip'; shards are of parquet, webdataset, fastvideo"),
        ({"format": "webdataset", "text": "x"}, "shards of the format webdataset hold no text embeddings"),
        ({"format": "webdataset", "shard_size": 0}, "shard_size"),
        ({"format": "fastvideo"}, "FastVideo's rows need text embeddings, .*: give --text"),
    ],
)
def test_packing_that_is_not_possible_gets_a_sentence(
    cache: Path, tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    if arguments["format"] == "fastvideo":
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=sentence):
        pack_latents(cache, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def other_format(cache: Path, out: Path) -> None:
    pack_latents(cache, out, format="webdataset")
    (out / "shards.json").write_text('{"format": "parquet", "shards": []}', encoding="utf-8")


def stranger(cache: Path, out: Path) -> None:
    out.mkdir()
    (out / "00000.tar").write_bytes(b"mine")


def damaged(cache: Path, out: Path) -> None:
    out.mkdir()
    (out / "shards.json").write_text("[]", encoding="utf-8")


def outside(cache: Path, out: Path) -> None:
    out.mkdir()
    entry = {"path": "../a.mkv.safetensors", "items": 1, "bytes": 1, "digest": ""}
    (out / "shards.json").write_text(json.dumps({"format": "webdataset", "shards": [entry]}), encoding="utf-8")


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (other_format, "holds shards of the format 'parquet'; name another folder for webdataset"),
        (stranger, "00000.tar is there, and shards.json does not name it"),
        (damaged, "shards.json is damaged"),
        (outside, "names files outside of"),
    ],
)
def test_folder_that_holds_something_else_is_left_as_it_is(
    cache: Path, tmp_path: Path, prepare: Callable[[Path, Path], None], sentence: str
) -> None:
    prepare(cache, tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=sentence):
        pack_latents(cache, tmp_path / "out", format="webdataset")
    assert contents(tmp_path) == before


def test_cache_of_another_format_is_not_packed(vae: WanVAE, clips: Path, tmp_path: Path) -> None:
    cache_latents(clips, tmp_path / "musubi", vae, options=CacheOptions(format="musubi"))
    with pytest.raises(UserError, match="is a cache of musubi-tuner; a cache to be packed is of the format wan-vae or"):
        pack_latents(tmp_path / "musubi", tmp_path / "out", format="webdataset")
    with pytest.raises(UserError, match="is no cache"):
        pack_latents(clips, tmp_path / "out", format="webdataset")
    with pytest.raises(UserError, match="holds no shards"):
        LatentStream(clips)


def test_pack_without_pyarrow_says_what_to_install(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UserError, match=r'needs the package pyarrow: pip install "wan-vae\[parquet\]"'):
        pack_latents(cache, tmp_path / "out", format="parquet")


def test_pack_command_prints_what_it_did(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("pack", cache, tmp_path / "out", "--format", "webdataset")
    result = run(capsys, *common, "--shard-size", "1KiB", "--json").result()
    assert (result["items"], result["shards"], result["written"]) == (3, 3, 3)
    ended = run(capsys, *common, "--shard-size", "1 pound")
    assert (ended.code, ended.out) == (2, "")
    assert "--shard-size is '1 pound'; write bytes, or a number with a unit such as 1GiB" in ended.err
