"""Clips to latents: what is done is skipped, what cannot be done is listed, the rest goes on.

>>> from wan_vae.dataset import CacheOptions, cache_latents
>>> cache_latents("clips", "latents", "wan2.1", options=CacheOptions(fps=16, size=(832, 480)))
"""

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from wan_vae.arguments import check_count, check_path
from wan_vae.dataset.manifest import Failure, Manifest
from wan_vae.dataset.plan import CacheOptions, CheckpointDigests, Job, Todo, find_jobs
from wan_vae.dataset.sources import Source, list_sources, named_sources, some_of, with_twins
from wan_vae.dataset.storage import Store, remove_output
from wan_vae.errors import UserError
from wan_vae.io.file_names import CLIP_SUFFIXES

if TYPE_CHECKING:
    from wan_vae.dataset.engines import Done, Loader, Work
    from wan_vae.inference.budget import Budget
    from wan_vae.vae import WanVAE

Progress: TypeAlias = "Callable[[CacheResult], object]"

_LOGGER = logging.getLogger("wan_vae")


@dataclass
class CacheResult:
    """What a run did, so far or in all.

    Attributes:
        total: Clips of this run, or of this process's share.
        kept: Clips that were cached before.
        cached: Clips that were encoded.
        failed: Clips that could not be, now or before.
        pruned: Files that were removed.
        outputs: Files that were written.
        frames: Frames that were encoded.
        seconds: Time since the first clip was begun.
        waited: Seconds of these in which the network waited for frames to be decoded, the mean of all processes; 0 for
            a cluster, where it is not measured.
    """

    total: int = 0
    kept: int = 0
    cached: int = 0
    failed: int = 0
    pruned: int = 0
    outputs: int = 0
    frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def cache_latents(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    vae: "WanVAE | str | Path",
    *,
    options: CacheOptions | None = None,
    memory: "Budget" = "auto",
    shard: tuple[int, int] = (0, 1),
    threads: int = 2,
    devices: int = 1,
    ray: str | None = None,
    retry: bool = False,
    prune: bool = False,
    progress: "Progress | None" = None,
    load: "Loader | None" = None,
) -> CacheResult:
    """Encode all clips of a folder or a list into the files of a cache.

    A clip whose outputs are there, made of the same file with the same options and weights, is skipped. One that cannot
    be encoded is added to failures.jsonl with the reason, and tried again when it changes, or with `retry`; where
    memory or rights were at fault, in every run.

    Args:
        source: A folder, which is searched recursively, a list (.txt, .jsonl, .csv; see `list_sources`), or clips.
        out: Folder of manifest.jsonl and failures.jsonl, and of the outputs unless the options name a `store` for
            them. Outputs are named by the clips.
        vae: A model, or a checkpoint's name or path, which is loaded only if there is work.
        options: Format, sizes, rates and parts.
        memory: A budget for the network, as of `encode_file`; of each process, if there are several.
        shard: Number of this process, from 0, and how many share the work, each with a part of the clips.
        threads: Clips that a process decodes at a time.
        devices: Processes, each on a GPU of its own or with its share of the cores.
        ray: A Ray cluster that does the work, by its address, or "auto" for the one that this machine is part of; then
            `devices` is how many of its GPUs, or of its nodes' shares of cores, and 1 stands for all.
        retry: Whether clips that failed before are tried again.
        prune: Whether outputs of clips that are not in `source`, deleted or renamed ones, are removed; else they stay
            in the cache, with a notice. In one process of several, the first. Likewise files that are left of clips
            that changed, or of other options, and that the manifest does not list any more, unless `shard` is of
            several, whose new files might be among them.
        progress: Called before the first clip and after every pass; with several processes, several times a second. It
            may raise an exception to cancel.
        load: Loads `vae` if it is a name or path; by default on a GPU if there is one, in the dtype of the options.
            Several processes need one that can be pickled.

    Raises:
        UserError: There is nothing to cache, an option cannot be used, the disk is full, a process died, or the
            storage of `options.store` cannot be reached.
    """
    options = complete_options(options, vae)
    folder = check_path("out", out)
    check_count("threads", threads)
    check_count("devices", devices)
    number, count = check_shard(shard)
    if not isinstance(vae, str | Path) and (devices > 1 or ray is not None):
        raise UserError("vae is a model, which other processes cannot share; give its checkpoint's name or path.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the outputs.")
    listed, unread = find_sources(source, folder, options)
    sources = listed[number::count]
    store = None if options.store is None else Store(options.store)
    if store is not None:
        store.create()
    folder.mkdir(parents=True, exist_ok=True)
    manifest, digests = Manifest(folder, shard, store), CheckpointDigests(folder)
    digest = digests.find(vae) if isinstance(vae, str | Path) else vae.digest()
    result = CacheResult(total=len(sources))
    tells = prune or not _names_clips(source)
    if number == 0 and tells:
        result.pruned = _prune({item.label for item in listed}, unread, manifest, prune)

    def finish() -> CacheResult:
        manifest.settle()
        if count == 1 and tells:
            result.pruned += _prune_former(manifest, prune)
        return result

    if digest is not None:
        todo = find_jobs(sources, manifest, options, digest, retry=retry)
        if not todo.jobs and not todo.refused:
            _count(todo, manifest, result)
            return finish()

    from wan_vae.dataset.engines import CancelledError, Work, memory_share

    share = memory_share(memory, 1 if ray is not None else devices)  # of a cluster, each actor knows its node's
    work = Work(vae, load or default_loader(options), folder, options, share, threads)
    model = work.model()
    found = model.digest()
    if isinstance(vae, str | Path):
        digests.remember(vae, found)
    todo = find_jobs(sources, manifest, options, found, retry=retry)
    _count(todo, manifest, result)
    if devices == 1 and ray is None:
        work = replace(work, vae=model)
    del model  # the processes that do the work have their own
    try:
        _run(todo, manifest, work, devices, ray, result, progress, {item.label for item in listed})
    except CancelledError as cancelled:
        raise cancelled.args[0] from None
    return finish()


def complete_options(options: CacheOptions | None, vae: "WanVAE | str | Path") -> CacheOptions:
    """Return options with the dtype that the network computes in: that of a model, and for "auto" what is chosen."""
    options = CacheOptions() if options is None else options
    if isinstance(vae, str | Path) and options.dtype != "auto":
        return options
    from wan_vae.validation import TF32, best_device, choose_dtypes

    if isinstance(vae, str | Path):
        dtype = choose_dtypes("auto", best_device()).encoder
    else:
        dtype = TF32 if vae.encoder_tf32 else vae.dtype
    return replace(options, dtype=str(dtype).removeprefix("torch."))


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Return the number of a process, from 0, and how many there are; a UserError if that cannot be."""
    number, count = shard
    return check_count("the shard", number, 0, check_count("the number of shards", count) - 1), count


def _names_clips(source: str | Path | Sequence[str | Path]) -> bool:
    """Whether a source is clips themselves, not a folder or a list, so that those cached before are meant to stay."""
    return not isinstance(source, str | Path) or Path(source).suffix.lower() in CLIP_SUFFIXES


def gone_clips(manifest: Manifest, labels: set[str], unread: Sequence[str]) -> list[str]:
    """Return the clips of a cache that the source does not name any more; see `find_sources` for `unread`."""
    below = tuple(f"{place}/" for place in unread)
    return sorted(label for label in manifest.sources - labels if not label.startswith(below))


def _prune(labels: set[str], unread: Sequence[str], manifest: Manifest, wanted: bool) -> int:
    """Remove the outputs of clips that have other names, or tell of them; return the number of files.

    Those of clips below the folders `unread` stay: whether the clips are there is not known.
    """
    gone = gone_clips(manifest, labels, unread)
    if gone and not wanted:
        _LOGGER.warning(
            f"{manifest.folder} also holds outputs of {some_of(gone)}, which the source does not name; they stay in the"
            " cache, and --prune (in Python, prune) removes them."
        )
        return 0
    files = 0
    for source in gone:
        for output in manifest.outputs_of(source):
            remove_output(manifest.folder, output)
            files += 1
        manifest.remove(source)
    return files


def _prune_former(manifest: Manifest, wanted: bool) -> int:
    """Remove the files that are of no clip as it is now, or tell of them; return their number."""
    former = manifest.former()
    if former and not wanted:
        _LOGGER.warning(
            f"{manifest.folder} also holds {some_of(former)}, made of clips as they were or with other options, which"
            " no list of the cache names any more; --prune (in Python, prune) removes them."
        )
        return 0
    for output in former:
        remove_output(manifest.folder, output)
    return len(former)


def _count(todo: Todo, manifest: Manifest, result: CacheResult) -> None:
    result.kept, result.failed = todo.kept, len(todo.failed)
    if todo.failed:
        _LOGGER.warning(
            f"{some_of(todo.failed)} failed before and did not change, see the failures.jsonl in {manifest.folder};"
            " --retry (in Python, retry) tries again."
        )


def find_sources(
    source: str | Path | Sequence[str | Path], folder: Path, options: CacheOptions
) -> tuple[list[Source], list[str]]:
    """Return the clips of `cache_latents`, which have different names, and folders whose clips are left out unseen.

    Clips in `folder` are left out.

    Raises:
        UserError: There is none, or two are the same.
    """
    unread: list[str] = []
    if isinstance(source, str | Path):
        sources = list_sources(check_path("source", source), outside=folder, unread=unread)
    else:
        sources = named_sources([check_path("source", path) for path in source])
    seen = set()
    for item in sources:
        if item.label in seen:
            raise UserError(f"{item.path} is named twice; outputs are named by the clips and their first frames.")
        seen.add(item.label)
    return with_twins(sources, options.format), unread


def _run(
    todo: Todo,
    manifest: Manifest,
    work: "Work",
    devices: int,
    ray: str | None,
    result: CacheResult,
    progress: "Progress | None",
    labels: set[str],
) -> None:
    from wan_vae.dataset.engines import CancelledError
    from wan_vae.io import atomic_output

    begun = time.perf_counter()

    def tick() -> None:
        result.seconds = time.perf_counter() - begun
        if progress is not None:
            try:
                progress(result)
            except Exception as error:
                raise CancelledError(error) from error

    for place, _, _ in os.walk(manifest.folder):
        atomic_output.remove_partial(Path(place))  # of runs that were killed
    for job, reason in todo.refused:
        _fail(job, reason, True, manifest, result, keep=True)
    tick()
    if not todo.jobs:
        return
    if work.options.size is not None and work.options.stretches:
        size = "x".join(map(str, work.options.size))
        _LOGGER.warning(
            f"Clips of another shape than {size} are stretched to it; --fit crop or --fit pad (in Python, fit) keeps"
            " their pixels square, and --fit stretch is for those who want this."
        )
    with closing(_done(todo.jobs, work, devices, ray, tick)) as finished:
        for done in finished:
            owners = {manifest.owner_of(record.output) for record in done.records} - {done.job.source.label}
            other = next((owner for owner in owners if owner in labels), None)
            if other is not None:
                reason = f"it has the same frames as {other}, and so the same file; take one of the two out."
                _fail(done.job, reason, False, manifest, result)
            elif done.error is None:
                atomic_output.named = True  # other processes say that to themselves only
                for record in done.records:
                    manifest.add(record)
                    result.outputs += 1
                    result.frames += record.frames
                result.cached += 1
            else:
                _fail(done.job, done.error, done.passing, manifest, result)
            result.waited += done.waited / devices if ray is None else 0.0
            tick()


def _done(
    jobs: list[Job], work: "Work", devices: int, ray: str | None, tick: Callable[[], object]
) -> "Generator[Done, None, None]":
    from wan_vae.dataset.engines import encode_in_processes, encode_jobs

    if ray is not None:
        from wan_vae.dataset.cluster import encode_on_cluster

        return encode_on_cluster(jobs, work, ray, None if devices == 1 else devices, tick)
    if devices > 1:
        return encode_in_processes(jobs, work, min(devices, len(jobs)), tick)
    return encode_jobs(work.model(), jobs, work, tick)


def _fail(job: Job, reason: str, passing: bool, manifest: Manifest, result: CacheResult, *, keep: bool = False) -> None:
    manifest.add(Failure(job.source.label, reason, job.passing_key if passing else job.key), keep=keep)
    result.failed += 1
    _LOGGER.warning(f"{job.source.label} is left out: {reason}")


def default_loader(options: CacheOptions) -> "Loader":
    """Return what loads a checkpoint where nothing else is asked for; `options` are from `complete_options`."""
    from wan_vae.tiny import load_vae

    return partial(load_vae, device="auto", dtype=options.dtype)
