"""What a shard of a packed cache holds, and how it is written: Parquet, WebDataset, and Parquet for FastVideo.

The same cache gives the same bytes, with one version of pyarrow. Facts of FastVideo from
fastvideo/dataset/dataloader/schema.py and record_schema.py, and dataset/utils.py, which reads the tensors.
"""

import importlib
import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_vae.dataset.manifest import Record
from wan_vae.dataset.reading import stored_latents
from wan_vae.dataset.storage import Outputs
from wan_vae.dataset.text import find_embedding, read_embedding
from wan_vae.errors import UserError
from wan_vae.interchange.formats import FORMATS, Values
from wan_vae.interchange.reader import open_latents
from wan_vae.io.latents_file import LatentsFile
from wan_vae.posterior import LatentStatistics

_GROUP = 2**24  # bytes of a row group, which is what readers load at once

COLUMNS = {
    "latents_bytes": "binary",
    "latents_shape": "list<int64>",
    "latents_dtype": "string",
    "values": "string",
    "caption": "string",
    "source": "string",
    "start": "int64",
    "part": "int64",
    "parts": "int64",
    "frames": "int64",
    "width": "int64",
    "height": "int64",
    "fps": "float64",
    "duration": "float64",
    "checkpoint": "string",
    "extra": "string",
}
"""Of Parquet shards. Shapes are (z, t, h, w), dtypes torch's names, `extra` is JSON."""

_FASTVIDEO_COLUMNS = {
    "id": "string",
    "vae_latent_bytes": "binary",
    "vae_latent_shape": "list<int64>",
    "vae_latent_dtype": "string",
    "text_embedding_bytes": "binary",
    "text_embedding_shape": "list<int64>",
    "text_embedding_dtype": "string",
    "file_name": "string",
    "caption": "string",
    "media_type": "string",
    "width": "int64",
    "height": "int64",
    "num_frames": "int64",
    "duration_sec": "float64",
    "fps": "float64",
}


class ShardFormat(ABC):
    """A format of shards.

    Args:
        cache: The cache's folder.
        text: The folder of text embeddings, for FastVideo.
    """

    def __init__(self, cache: Path, text: Path | None) -> None:
        self._outputs, self._text = Outputs(cache), text

    @abstractmethod
    def path(self, number: int) -> str:
        """Return the file of a shard, below the folder of all."""

    def size(self, record: Record) -> int:
        """Return about how many bytes an item takes."""
        return record.bytes

    def depends(self, record: Record) -> Any:
        """Return what an item is made of beside the record, as JSON; raise a UserError if it is not there."""
        return None

    def check(self, record: Record) -> Values:
        """Return whether an output holds raw or normalized latents; raise a UserError for one that cannot be packed."""
        opened = open_latents(self._outputs.path(record.output))
        if isinstance(opened, LatentsFile):
            return "normalized"
        if opened.form is not FORMATS["tensor"] or opened.values is None:
            raise UserError(
                f"{self._outputs.shown(record.output)} is {opened.form.title}; a cache to be packed is of the format"
                " wan-vae or tensor: encode one."
            )
        return opened.values

    @abstractmethod
    def write(self, path: Path, number: int, records: Iterable[Record]) -> None:
        """Write a shard."""


class ParquetShards(ShardFormat):
    """A row for an item."""

    def __init__(self, cache: Path, text: Path | None) -> None:
        super().__init__(cache, text)
        pyarrow()

    def path(self, number: int) -> str:
        return f"{number:05d}.parquet"

    def write(self, path: Path, number: int, records: Iterable[Record]) -> None:
        _write_rows(path, COLUMNS, ((self.size(record), self._row(record)) for record in records))

    def _row(self, record: Record) -> dict[str, Any]:
        latents = stored_latents(self._outputs, record)[0]
        return {
            "latents_bytes": _bytes(latents),
            "latents_shape": list(latents.shape),
            "latents_dtype": str(latents.dtype).removeprefix("torch."),
            **_facts(record, self.check(record)),
            "extra": json.dumps(record.extra),
        }


class FastVideoShards(ParquetShards):
    """A row for an item as FastVideo's training from text reads it: raw means and text embeddings, in float32."""

    def __init__(self, cache: Path, text: Path | None) -> None:
        super().__init__(cache, text)
        if text is None:
            raise UserError(
                "FastVideo's rows need text embeddings, or its training fails on zeros of another width: give --text"
                " with a folder of a .safetensors or .npy for each clip, (tokens, width)."
            )

    def path(self, number: int) -> str:
        return f"combined_parquet_dataset/worker_0/data_chunk_{number}.parquet"

    def size(self, record: Record) -> int:
        return 4 * torch.Size(record.shape).numel() + self._embedding(record).stat().st_size

    def depends(self, record: Record) -> Any:
        status = self._embedding(record).stat()
        return [status.st_size, status.st_mtime_ns]

    def check(self, record: Record) -> Values:
        values = super().check(record)
        opened = open_latents(self._outputs.path(record.output))
        if values == "normalized" and not isinstance(opened, LatentsFile):
            raise UserError(
                f"{self._outputs.shown(record.output)} does not say which model's statistics normalized it, and"
                " FastVideo takes raw latents: cache in the format wan-vae, or tensor with --values raw."
            )
        return values

    def write(self, path: Path, number: int, records: Iterable[Record]) -> None:
        _write_rows(path, _FASTVIDEO_COLUMNS, ((self.size(record), self._row(record)) for record in records))

    def _row(self, record: Record) -> dict[str, Any]:
        values = self.check(record)
        latents = stored_latents(self._outputs, record).float()
        opened = open_latents(self._outputs.path(record.output))
        if values == "normalized" and isinstance(opened, LatentsFile):
            latents = LatentStatistics.of(opened.info.config, latents.dtype, latents.device).denormalized(latents)
        embedding = read_embedding(self._embedding(record))
        facts = _facts(record, values)
        return {
            "id": _text(record.output.removesuffix(".safetensors")),
            "vae_latent_bytes": _bytes(latents[0]),
            "vae_latent_shape": list(latents.shape[1:]),
            "vae_latent_dtype": "float32",
            "text_embedding_bytes": _bytes(embedding),
            "text_embedding_shape": list(embedding.shape),
            "text_embedding_dtype": "float32",
            "file_name": facts["source"].rpartition("/")[2],
            "caption": facts["caption"],
            "media_type": "image" if record.frames == 1 else "video",
            "width": record.width,
            "height": record.height,
            "num_frames": latents.shape[2],
            "duration_sec": record.duration,
            "fps": facts["fps"],
        }

    def _embedding(self, record: Record) -> Path:
        assert self._text is not None
        return find_embedding(self._text, record.source)


class WebDatasetShards(ShardFormat):
    """A tar with three files for an item: its latents file as it is in the cache, its facts, and its caption."""

    def path(self, number: int) -> str:
        return f"{number:05d}.tar"

    def write(self, path: Path, number: int, records: Iterable[Record]) -> None:
        with tarfile.open(path, "w") as tar:
            for row, record in enumerate(records):
                # A clip's name may hold dots, at the first of which readers end the key.
                key = f"{number:05d}_{row:05d}"
                facts = {**_facts(record, self.check(record)), "shape": record.shape[1:], "extra": record.extra}
                _add(tar, f"{key}.json", io.BytesIO(json.dumps(facts).encode()))
                with self._outputs.path(record.output).open("rb") as file:
                    _add(tar, f"{key}.safetensors", file)
                _add(tar, f"{key}.txt", io.BytesIO(facts["caption"].encode()))


SHARD_FORMATS: dict[str, type[ShardFormat]] = {
    "parquet": ParquetShards,
    "webdataset": WebDatasetShards,
    "fastvideo": FastVideoShards,
}


def pyarrow() -> Any:
    """Return the package that reads and writes Parquet.

    Raises:
        UserError: It is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise UserError('Parquet needs the package pyarrow: pip install "wan-vae[parquet]".') from error


def _facts(record: Record, values: Values) -> dict[str, Any]:
    numerator, _, denominator = record.fps.partition("/")
    return {
        "values": values,
        "caption": _text(record.caption or ""),
        "source": _text(record.source),
        "start": record.start,
        "part": record.part,
        "parts": record.parts,
        "frames": record.frames,
        "width": record.width,
        "height": record.height,
        "fps": int(numerator) / int(denominator or 1),
        "duration": record.duration,
        "checkpoint": record.key.checkpoint,
    }


def _text(text: str) -> str:
    """Return text in which bytes of a name that are no UTF-8 are escaped."""
    return text.encode(errors="backslashreplace").decode()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _write_rows(path: Path, columns: dict[str, str], rows: Iterator[tuple[int, dict[str, Any]]]) -> None:
    """Write rows, each after its size in bytes."""
    arrow = pyarrow()
    kinds = {"binary": arrow.binary(), "string": arrow.string(), "int64": arrow.int64(), "float64": arrow.float64()}
    kinds["list<int64>"] = arrow.list_(arrow.int64())
    schema = arrow.schema([arrow.field(name, kinds[kind]) for name, kind in columns.items()])
    # Latents do not repeat, and their least and greatest bytes tell nothing.
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    with arrow.parquet.ParquetWriter(path, schema, **options) as writer:
        group: list[dict[str, Any]] = []
        held = 0
        for size, row in rows:
            if group and held + size > _GROUP:
                writer.write_table(arrow.Table.from_pylist(group, schema=schema))
                group, held = [], 0
            group.append(row)
            held += size
        writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def _add(tar: tarfile.TarFile, name: str, file: Any) -> None:
    entry = tarfile.TarInfo(name)  # of no owner and no time, so that the bytes are always the same
    entry.size = file.seek(0, io.SEEK_END)
    file.seek(0)
    tar.addfile(entry, file)
