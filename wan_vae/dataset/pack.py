"""Shards made of a finished cache, for training that streams. A step of its own: a cache resumes by the clip.

>>> from wan_vae.dataset import pack_latents
>>> pack_latents("latents", "shards", format="webdataset", shard_size=2**30)
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wan_vae.arguments import check_count, check_path, shown
from wan_vae.dataset.manifest import Manifest, Record
from wan_vae.dataset.shards import SHARD_FORMATS, ShardFormat
from wan_vae.dataset.storage import is_below
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import check_distinct, written_beside

INDEX = "shards.json"
_VERSION = 1  # of what shards hold; raise it where the same cache gives others
_LOGGER = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class PackResult:
    """What a run did.

    Attributes:
        items: Items of all shards.
        shards: Shards, of which `written` are new or changed, and `kept` were there.
        removed: Shards of a larger cache before, which are no more.
        bytes: Of all shards.
    """

    items: int
    shards: int
    written: int
    kept: int
    removed: int
    bytes: int


@dataclass(frozen=True)
class _Entry:
    """A shard that is there, as the index says."""

    path: str
    items: int
    bytes: int
    digest: str  # of what it was made of


def pack_latents(
    cache: str | Path,
    out: str | Path,
    *,
    format: str = "parquet",  # noqa: A002  # as the command line calls it
    shard_size: int = 2**30,
    text: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PackResult:
    """Write the items of a cache into shards, in the order of their names; shards that are there and fit are kept.

    Args:
        cache: A cache of the format "wan-vae" or "tensor".
        out: A folder for the shards and their list, shards.json.
        format: "parquet", "webdataset" or "fastvideo".
        shard_size: Bytes of latents in a shard, at most; a larger item has one for itself.
        text: Folder of text embeddings for "fastvideo", a .safetensors or .npy for each clip, named as the clip.
        progress: Called with the items written and those to be written. It may raise an exception to cancel.

    Raises:
        UserError: There is no cache, it cannot be packed, or `out` holds something else.
        OSError: The disk is full.
    """
    check_count("shard_size", shard_size)
    folder, target = check_path("cache", cache), check_path("out", out)
    if format not in SHARD_FORMATS:
        raise UserError(f"format is {shown(format)}; shards are of {', '.join(SHARD_FORMATS)}.")
    if text is not None and format != "fastvideo":
        raise UserError(f"text was given, and shards of the format {format} hold no text embeddings; leave it out.")
    check_distinct(folder, target)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; name a folder for the shards.")
    manifest = Manifest.of_cache(folder)
    form = SHARD_FORMATS[format](folder, None if text is None else check_path("text", text))
    form.check(manifest.records[0])
    if failed := manifest.failures.keys() - manifest.sources:
        _LOGGER.warning(f"{folder} lists clips that failed ({len(failed)}); they are not in the shards.")
    there = read_index(target, format)
    plan = [
        (form.path(number), _digest(form, format, records), records)
        for number, records in enumerate(_split(form, manifest.records, shard_size))
    ]
    kept = {
        path: there[path]
        for path, digest, _ in plan
        if path in there and there[path].digest == digest and _size(target / path) == there[path].bytes
    }
    _check_free(target, [path for path, _, _ in plan if path not in there])
    removed = [path for path in there if path not in {path for path, _, _ in plan}]
    if len(kept) < len(plan) or removed:
        _make(form, target, format, plan, kept, removed, progress)
    entries = read_index(target, format).values()
    written = len(plan) - len(kept)
    total = sum(entry.bytes for entry in entries)
    return PackResult(len(manifest.records), len(plan), written, len(kept), len(removed), total)


def _make(
    form: ShardFormat,
    target: Path,
    name: str,
    plan: list[tuple[str, str, list[Record]]],
    kept: dict[str, _Entry],
    removed: list[str],
    progress: Callable[[int, int], object] | None,
) -> None:
    total, done = sum(len(records) for path, _, records in plan if path not in kept), 0

    def counted(records: Iterable[Record]) -> Iterator[Record]:
        nonlocal done
        for record in records:
            if progress is not None:
                progress(done, total)
            yield record
            done += 1

    # FastVideo's own list of the shards and their lengths would be wrong.
    for stale in (*removed, "combined_parquet_dataset/map_style_cache/file_info.pkl"):
        (target / stale).unlink(missing_ok=True)
    # Shards that are to change are in the list, as ours, but without a digest: if this is killed, they are done again.
    entries = {path: kept.get(path, _Entry(path, 0, 0, "")) for path, _, _ in plan}
    _write_index(target, name, entries)
    for number, (path, digest, records) in enumerate(plan):
        if path in kept:
            continue
        with written_beside(target / path) as temporary:
            form.write(temporary, number, counted(records))
        entries[path] = _Entry(path, len(records), (target / path).stat().st_size, digest)
        _write_index(target, name, entries)
    if progress is not None:
        progress(total, total)


def _split(form: ShardFormat, records: list[Record], most: int) -> Iterator[list[Record]]:
    shard: list[Record] = []
    held = 0
    for record in records:
        size = form.size(record)
        if shard and held + size > most:
            yield shard
            shard, held = [], 0
        shard.append(record)
        held += size
    yield shard


def _digest(form: ShardFormat, name: str, records: list[Record]) -> str:
    """Return what tells two contents of a shard apart, without reading the latents."""
    items = [({**asdict(record), "seconds": None}, form.depends(record)) for record in records]
    return hashlib.sha256(json.dumps([_VERSION, name, items], sort_keys=True).encode()).hexdigest()


def read_index(target: Path, name: str) -> dict[str, _Entry]:
    """Return what the index of a folder says of its shards, by their paths; nothing without an index.

    Raises:
        UserError: It is damaged, or of shards of another format than `name`.
    """
    path = target / INDEX
    if not path.is_file():
        return {}
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = stored["format"]
        entries = {entry["path"]: _Entry(**entry) for entry in stored["shards"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); name another folder, or remove it with its shards.") from error
    if found != name:
        raise UserError(f"{target} holds shards of the format {shown(found)}; name another folder for {name}.")
    if not all(is_below(path) for path in entries):
        raise UserError(f"{path} names files outside of {target}; name another folder.")
    return entries


def _write_index(target: Path, name: str, entries: dict[str, _Entry]) -> None:
    shards = [asdict(entries[path]) for path in sorted(entries)]
    with written_beside(target / INDEX) as temporary:
        temporary.write_text(json.dumps({"format": name, "shards": shards}, indent=1), encoding="utf-8")


def _check_free(target: Path, paths: list[str]) -> None:
    """Refuse to replace files that are no shards of ours."""
    for path in paths:
        if (target / path).exists():
            raise UserError(
                f"{target / path} is there, and {INDEX} does not name it; name another folder for the shards."
            )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
