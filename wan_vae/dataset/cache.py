"""Clips to latents on one machine: what is done is skipped, what cannot be done is listed, the rest goes on.

>>> from wan_vae.dataset import cache_latents
>>> cache_latents("clips", "latents", "wan2.1", fps=16, size=(832, 480))
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from wan_vae.arguments import check_count, check_path
from wan_vae.dataset.manifest import Failure, Manifest, Record
from wan_vae.dataset.plan import CacheOptions, CheckpointDigests, Job, Todo, find_jobs
from wan_vae.dataset.sources import list_sources
from wan_vae.errors import UserError, printable

if TYPE_CHECKING:
    from wan_vae.dataset.encode import Item, PartEncoder
    from wan_vae.inference.budget import Budget
    from wan_vae.io.frames import Frames
    from wan_vae.tiny import TinyVAE
    from wan_vae.vae import WanVAE

Loader: TypeAlias = "Callable[[str | Path], WanVAE | TinyVAE]"
Progress: TypeAlias = "Callable[[CacheResult], object]"

_HELD = 4  # chunks that a thread reads ahead
_LEAST_ROOM = 2**20  # bytes on the disk
_LOGGER = logging.getLogger("wan_vae")


@dataclass
class CacheResult:
    """What a run did, so far or in all.

    Attributes:
        total: Clips of this run, or of this process's share.
        kept: Clips that were cached before.
        cached: Clips that were encoded.
        failed: Clips that could not be, now or before.
        outputs: Files that were written.
        frames: Frames that were encoded.
        seconds: Time since the model was loaded.
        waited: Seconds of these in which the network waited for frames to be decoded.
    """

    total: int = 0
    kept: int = 0
    cached: int = 0
    failed: int = 0
    outputs: int = 0
    frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def cache_latents(
    source: str | Path,
    out: str | Path,
    vae: "WanVAE | str | Path",
    *,
    options: CacheOptions | None = None,
    memory: "Budget" = "auto",
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    retry: bool = False,
    progress: "Progress | None" = None,
    load: "Loader | None" = None,
) -> CacheResult:
    """Encode all clips of a folder or a list into the files of a cache.

    A clip whose outputs are there, made of the same file with the same options and weights, is skipped. One that cannot
    be encoded is added to failures.jsonl with the reason, and tried again when it changes, or with `retry`.

    Args:
        source: A folder, which is searched recursively, or a list (.txt, .jsonl, .csv; see `list_sources`).
        out: Folder of the outputs, manifest.jsonl and failures.jsonl. Outputs are named by the clips.
        vae: A model, or a checkpoint's name or path, which is loaded only if there is work.
        options: Format, sizes, rates and parts.
        memory: A budget for the network, as of `encode_file`.
        shard: Number of this process, from 0, and how many share the work, each with a part of the clips.
        threads: Clips that are decoded at a time.
        retry: Whether clips that failed before are tried again.
        progress: Called before the first clip and after every pass. It may raise an exception to cancel.
        load: Loads `vae` if it is a name or path; default `WanVAE.from_pretrained`.

    Raises:
        UserError: There is nothing to cache, an option cannot be used, or the disk is full.
    """
    options = CacheOptions() if options is None else options
    source, folder = check_path("source", source), check_path("out", out)
    check_count("threads", threads)
    number, count = shard
    check_count("the number of shards", count)
    check_count("the shard", number, 0, count - 1)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the outputs.")
    sources = list_sources(source, outside=folder)[number::count]
    _check_names(sources)
    folder.mkdir(parents=True, exist_ok=True)
    manifest, digests = Manifest(folder, shard), CheckpointDigests(folder)
    digest = digests.find(vae) if isinstance(vae, str | Path) else vae.digest()
    result = CacheResult(total=len(sources))
    todo = None
    if digest is not None:
        todo = find_jobs(sources, manifest, options, digest, retry=retry)
        if not todo.jobs and not todo.missing:
            result.kept, result.failed = todo.kept, todo.failed
            return result
    model = _loaded(vae, load)
    if isinstance(vae, str | Path) and (found := model.digest()) != digest:
        digests.remember(vae, found)
        todo = find_jobs(sources, manifest, options, found, retry=retry)
    assert todo is not None
    result.kept, result.failed = todo.kept, todo.failed
    try:
        _run(todo, manifest, model, options, memory, threads, result, progress)
    except _CancelledError as cancelled:
        raise cancelled.args[0] from None
    manifest.settle()
    return result


class _CancelledError(BaseException):
    """An exception of `progress`, which is no fault of the clip that is being encoded."""


def _run(
    todo: Todo,
    manifest: Manifest,
    model: "WanVAE",
    options: CacheOptions,
    memory: "Budget",
    threads: int,
    result: CacheResult,
    progress: "Progress | None",
) -> None:
    from wan_vae.dataset.ahead import ReadingAhead
    from wan_vae.dataset.encode import PartEncoder, read_parts

    owners = {record.output: record.source for record in manifest.records}
    encoder = PartEncoder(model, manifest.folder, options, memory, owners)
    for job in todo.missing:
        _fail(job, UserError(f"{job.source.path} does not exist."), manifest, result)
    begun = time.perf_counter()

    def tick() -> None:
        result.seconds = time.perf_counter() - begun
        if progress is not None:
            try:
                progress(result)
            except Exception as error:
                raise _CancelledError(error) from error

    tick()
    with ReadingAhead(todo.jobs, lambda job: read_parts(job, options, model), threads=threads, held=_HELD) as ahead:
        for job, items in ahead:
            try:
                for record in encode_parts(job, items, encoder, tick):
                    manifest.add(record)
                    result.outputs += 1
                    result.frames += record.frames
                result.cached += 1
            except Exception as error:  # of one clip, whatever it is: the others are not to be lost for it
                if shutil.disk_usage(manifest.folder).free < _LEAST_ROOM:
                    raise UserError(f"The disk of {manifest.folder} is full; make room and start again.") from error
                _fail(job, error, manifest, result)
            result.waited = ahead.waited
            tick()


def encode_parts(
    job: Job, items: "Iterator[Item]", encoder: "PartEncoder", tick: Callable[[], object]
) -> Iterator[Record]:
    """Encode all parts of a clip; yields what the manifest says of each."""
    from wan_vae.dataset.encode import Begin

    waiting: list[Begin] = []

    def frames() -> "Iterator[Frames]":
        for item in items:
            if isinstance(item, Begin):
                waiting.append(item)
                return
            yield item

    for _ in frames():
        raise AssertionError("frames came before the part that they belong to")
    while waiting:
        yield encoder.encode(job, waiting.pop(), frames(), tick)


def _fail(job: Job, error: Exception, manifest: Manifest, result: CacheResult) -> None:
    reason = printable(str(error)) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
    manifest.add(Failure(job.source.name, reason, job.key))
    result.failed += 1
    _LOGGER.warning(f"{job.source.name} is left out: {reason}")


def _check_names(sources: list[Any]) -> None:
    seen: dict[tuple[str, int | None], Path] = {}
    for source in sources:
        twin = seen.setdefault((source.name, source.start), source.path)
        if twin is not source.path:
            raise UserError(f"{source.path} is named twice; outputs are named by the clips and their first frames.")


def _loaded(vae: "WanVAE | str | Path", load: "Loader | None") -> "WanVAE":
    from wan_vae.vae import WanVAE

    model = (load or WanVAE.from_pretrained)(vae) if isinstance(vae, str | Path) else vae
    if not isinstance(model, WanVAE):
        raise UserError(f"vae is a {type(model).__name__}; it must be a WanVAE, or a checkpoint's name or path.")
    return model


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        clips, outputs, frames: To be encoded.
        kept, failed: Clips cached before, and clips that failed before or cannot be opened.
        bytes: Of the outputs.
        seconds: That it would take, by what the manifest says of clips before; None where it says nothing.
    """

    clips: int
    outputs: int
    frames: int
    kept: int
    failed: int
    bytes: int
    seconds: float | None


def estimate_cache(
    source: str | Path,
    out: str | Path,
    vae: "WanVAE | str | Path",
    *,
    options: CacheOptions | None = None,
    shard: tuple[int, int] = (0, 1),
    retry: bool = False,
    load: "Loader | None" = None,
) -> Estimate:
    """Return what `cache_latents` would do with the same arguments. Clips are opened, but not decoded."""
    from wan_vae.dataset.encode import cut
    from wan_vae.io import open_clip

    options = CacheOptions() if options is None else options
    folder = check_path("out", out)
    sources = list_sources(check_path("source", source), outside=folder)[shard[0] :: shard[1]]
    manifest, model = Manifest(folder, shard), _loaded(vae, load)
    config, bytes_per_value = model.config, model.dtype.itemsize
    todo = find_jobs(sources, manifest, options, model.digest(), retry=retry)
    failed, outputs, frames, size, pixels = todo.failed + len(todo.missing), 0, 0, 0, 0
    for job in todo.jobs:
        span = (job.source.start, job.source.stop)
        try:
            with open_clip(job.source.path, size=options.size, fit=options.fit, frames=span, fps=options.fps) as clip:
                info, parts = cut(job.source.path, clip.info, options, config)
        except UserError:
            failed += 1
            continue
        side = config.spatial_compression
        for part in parts:
            times = 1 + -(-(part.frames - 1) // config.temporal_compression)
            values = config.latent_channels * times * -(-info.height // side) * -(-info.width // side)
            outputs, frames, size = outputs + 1, frames + part.frames, size + values * bytes_per_value
            pixels += part.frames * info.width * info.height
    done = list(manifest.records)
    known = sum(record.frames * record.width * record.height for record in done)
    seconds = sum(record.seconds for record in done) / known * pixels if known else None
    clips = len(todo.jobs) + todo.failed + len(todo.missing) - failed
    return Estimate(clips, outputs, frames, todo.kept, failed, size, seconds)


def verify_cache(
    source: str | Path,
    out: str | Path,
    vae: "WanVAE | str | Path",
    *,
    options: CacheOptions,
    count: int = 8,
    **more: Any,
) -> list[str]:
    """Encode some clips of a cache again, spread over its manifest, and return the outputs whose bytes differ.

    `source`, `options` and the further arguments are those of `cache_latents`.
    """
    folder = check_path("out", out)
    manifest = Manifest(folder)
    names = sorted({record.source for record in manifest.records})
    if not names:
        raise UserError(f"{folder} is no cache: it has no manifest.jsonl with outputs.")
    wanted = set(names[:: max(1, len(names) // check_count("count", count))][:count])
    differing = []
    sources = [item for item in list_sources(check_path("source", source), outside=folder) if item.name in wanted]
    with tempfile.TemporaryDirectory(prefix="wan_vae_verify_") as place:
        again = Manifest(Path(place))
        model = _loaded(vae, more.pop("load", None))
        todo = find_jobs(sources, again, options, model.digest(), retry=True)
        _run(todo, again, model, options, more.pop("memory", "auto"), 2, CacheResult(), None)
        for record in again.records:
            stored = folder / record.output
            if not stored.is_file() or stored.read_bytes() != (Path(place) / record.output).read_bytes():
                differing.append(record.output)
    return differing
