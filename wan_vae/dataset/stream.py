"""Packed caches read back for training, one shard after another."""

import json
import random
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, distributed
from torch.utils.data import IterableDataset, get_worker_info

from wan_vae.arguments import check_count, check_path
from wan_vae.dataset.pack import INDEX, read_index
from wan_vae.dataset.shards import pyarrow
from wan_vae.errors import LatentsError, UserError
from wan_vae.io.latents_file import DTYPE_NAMES

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}
_COLUMNS = ["latents_bytes", "latents_shape", "latents_dtype", "caption", "source", "start"]


class LatentStream(IterableDataset[dict[str, Any]]):
    """The items of Parquet or WebDataset shards of `pack_latents`, each once an epoch over all ranks and workers.

    Items are those of `LatentDataset`. Whole shards go to the processes of torch.distributed, which is to be set up
    before this object, and within a process to the workers of its DataLoader, so have more shards than processes;
    processes whose shards hold more items go on for longer.
    """

    def __init__(self, folder: str | Path, *, shuffle: int = 0, seed: int = 0) -> None:
        """Find the shards.

        Args:
            folder: The output of `pack_latents`.
            shuffle: Items from which the next one is drawn at random; shards come in random order, too. 0 keeps the
                order.
            seed: Of the random order, which also depends on the epoch.

        Raises:
            UserError: There are no shards, or fewer than processes, or one that shards.json lists is missing.
        """
        place = check_path("folder", folder)
        check_count("shuffle", shuffle, 0)
        rows, tars = _shards(place, ".parquet"), _shards(place, ".tar")
        if bool(rows) == bool(tars):
            held = (
                "both shards of .parquet and of .tar; take one" if rows else "no shards, .parquet or .tar; pack a cache"
            )
            raise UserError(f"{folder} holds {held}, as `wan-vae pack` writes them.")
        self._shards = rows or tars
        missing = read_index(place, "parquet" if rows else "webdataset").keys() - {path.name for path in self._shards}
        if missing:
            raise LatentsError(f"{folder} lacks {min(missing)}, which its {INDEX} lists; pack the cache again.")
        if self._shards[0].suffix == ".parquet":
            pyarrow()
        self._shuffle, self._seed = shuffle, seed
        self._rank, self._ranks = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            # Workers of a DataLoader are not among the processes, so this cannot wait.
            self._rank, self._ranks = distributed.get_rank(), distributed.get_world_size()
        if len(self._shards) < self._ranks:
            raise UserError(
                f"{folder} holds {len(self._shards)} shards, fewer than the {self._ranks} processes; pack it with a"
                " smaller --shard-size."
            )
        # Shared, so that workers that outlive an epoch see the next one.
        epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._epoch = epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the random order of the next iteration."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        shards, order = list(self._shards), f"{self._seed} {self._epoch.item()}"
        if self._shuffle:
            random.Random(order).shuffle(shards)
        own = shards[self._rank :: self._ranks][number::workers]
        items = (item for shard in own for item in _items(shard))
        if not self._shuffle:
            yield from items
            return
        draw = random.Random(f"{order} {self._rank} {number}")
        held: list[dict[str, Any]] = []
        for item in items:
            if len(held) < self._shuffle:
                held.append(item)
                continue
            chosen = draw.randrange(len(held))
            yield held[chosen]
            held[chosen] = item
        draw.shuffle(held)
        yield from held


def _shards(folder: Path, suffix: str) -> list[Path]:
    # Temporary files of a run that is not over begin with a dot.
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def _items(shard: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from _of_parquet(shard) if shard.suffix == ".parquet" else _of_tar(shard)
    except LatentsError:
        raise
    except Exception as error:  # a damaged file can make the readers raise almost anything
        raise LatentsError(f"{shard} cannot be read ({error}); pack the cache again.") from error


def _of_parquet(shard: Path) -> Iterator[dict[str, Any]]:
    with pyarrow().parquet.ParquetFile(shard) as file:
        missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise LatentsError(f"{shard} has no column {missing[0]}; it is no shard of the format parquet.")
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns=_COLUMNS).to_pylist():
                yield {
                    "latents": _tensor(row["latents_bytes"], row["latents_shape"], row["latents_dtype"]),
                    "caption": row["caption"],
                    "source": row["source"],
                    "start": row["start"],
                }


def _tensor(values: bytes, shape: list[int], dtype: str) -> Tensor:
    if dtype not in _DTYPES:
        raise ValueError(f"its latents are {dtype}")
    return torch.frombuffer(bytearray(values), dtype=_DTYPES[dtype]).view(shape)


def _of_tar(shard: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(shard, "r:") as tar:
        for key, entries in groupby(tar, key=lambda entry: entry.name.partition(".")[0]):
            files = {entry.name.partition(".")[2]: _content(tar, entry) for entry in entries}
            if not {"safetensors", "json"} <= files.keys():
                raise LatentsError(f"{shard} has no latents and facts for {key}; it is no shard of this package.")
            facts = json.loads(files["json"])
            yield {
                "latents": load_safetensors(files["safetensors"])["latents"][0],
                "caption": facts["caption"],
                "source": facts["source"],
                "start": facts["start"],
            }


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    return b"" if file is None else file.read()
