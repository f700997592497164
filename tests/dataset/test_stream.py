"""Shards read back: every item once, over workers and processes, in a random order or not."""

import tarfile
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from wan_vae import WanVAE
from wan_vae.dataset import CacheOptions, Extract, LatentStream, cache_latents, pack_latents
from wan_vae.errors import LatentsError, UserError


def test_shuffled_stream_gives_every_item_once_and_another_order_each_epoch(
    vae: WanVAE, clips: Path, tmp_path: Path
) -> None:
    cache_latents(clips, tmp_path / "cache", vae, options=CacheOptions(extract=Extract("chunk", (1,))))
    pack_latents(tmp_path / "cache", tmp_path / "out", format="webdataset", shard_size=10000)
    ordered = [(item["source"], item["start"]) for item in LatentStream(tmp_path / "out")]
    stream = LatentStream(tmp_path / "out", shuffle=4, seed=3)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        epochs.append([(item["source"], item["start"]) for item in loader])
        assert sorted(epochs[-1]) == ordered
    assert epochs[0] == epochs[2] != epochs[1]
    assert epochs[0] != ordered


def test_ranks_share_the_shards(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_latents(cache, tmp_path / "out", format="webdataset", shard_size=1)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        found.append([item["source"] for item in LatentStream(tmp_path / "out")])
    assert found == [["a.mkv", "s.ub/c.mkv"], ["b.x.mkv"]]
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    with pytest.raises(UserError, match="holds 3 shards, fewer than the 4 processes; pack it with a smaller"):
        LatentStream(tmp_path / "out")


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_stream_of_a_damaged_shard_names_it(cache: Path, tmp_path: Path, name: str) -> None:
    pack_latents(cache, tmp_path / "out", format=name)
    shard = next(path for path in (tmp_path / "out").iterdir() if path.suffix != ".json")
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(LatentsError, match=r"00000.* cannot be read .*; pack the cache again"):
        list(LatentStream(tmp_path / "out"))


def test_stream_without_a_shard_of_the_list_names_it(cache: Path, tmp_path: Path) -> None:
    pack_latents(cache, tmp_path / "out", format="webdataset", shard_size=1)
    (tmp_path / "out" / "00001.tar").unlink()
    with pytest.raises(LatentsError, match=r"lacks 00001.tar, which its shards.json lists; pack the cache again"):
        LatentStream(tmp_path / "out")


def test_stream_of_a_folder_without_shards_gets_a_sentence(clips: Path) -> None:
    with pytest.raises(UserError, match=r"holds no shards, .parquet or .tar; pack a cache"):
        LatentStream(clips)
    for name in ("a.tar", "a.parquet"):
        (clips / name).touch()
    with pytest.raises(UserError, match=r"holds both shards of .parquet and of .tar; take one"):
        LatentStream(clips)


def test_stream_of_other_files_names_what_they_lack(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    import pyarrow as arrow

    pyarrow.write_table(arrow.table({"caption": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(LatentsError, match=r"a.parquet has no column latents_bytes; it is no shard of the format"):
        next(iter(LatentStream(tmp_path)))
    (tmp_path / "a.parquet").unlink()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(__file__, "x.txt")
    with pytest.raises(LatentsError, match=r"a.tar has no latents and facts for x; it is no shard of this package"):
        next(iter(LatentStream(tmp_path)))
