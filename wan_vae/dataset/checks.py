"""What a run over clips would do, and whether a cache holds what a run would write."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wan_vae.arguments import check_count, check_path
from wan_vae.dataset.cache import check_shard, complete_options, default_loader, find_sources, gone_clips
from wan_vae.dataset.manifest import Manifest
from wan_vae.dataset.plan import CacheOptions, find_jobs
from wan_vae.dataset.storage import Outputs, Store
from wan_vae.errors import UserError

if TYPE_CHECKING:
    from wan_vae.dataset.engines import Loader, Work
    from wan_vae.inference.budget import Budget
    from wan_vae.vae import WanVAE


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        clips, outputs, frames: To be encoded.
        kept, failed: Clips cached before, and clips that failed before or cannot be opened.
        bytes: Of the outputs.
        seconds: That it would take, by what the manifest says of clips before; None where it says nothing.
        pruned: Files to be removed.
    """

    clips: int
    outputs: int
    frames: int
    kept: int
    failed: int
    bytes: int
    seconds: float | None
    pruned: int


@dataclass(frozen=True)
class Verification:
    """What `verify_cache` found.

    Attributes:
        verified: Clips that were encoded again.
        differing: Outputs whose bytes differ.
    """

    verified: int
    differing: list[str]


def estimate_cache(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    vae: "WanVAE | str | Path",
    *,
    options: CacheOptions | None = None,
    memory: "Budget" = "auto",
    shard: tuple[int, int] = (0, 1),
    retry: bool = False,
    prune: bool = False,
    load: "Loader | None" = None,
) -> Estimate:
    """Return what `cache_latents` would do with the same arguments. Clips are opened, but not decoded.

    Those that only tell who does the work (`threads`, `devices`, `ray`) are not taken. A UserError as by
    `cache_latents`.
    """
    from wan_vae.dataset.encode import cut, open_source
    from wan_vae.inference.budget import parse_bytes

    options = complete_options(options, vae)
    folder, shard = check_path("out", out), check_shard(shard)
    listed, unread = find_sources(source, folder, options)
    sources = listed[shard[0] :: shard[1]]
    store = None if options.store is None else Store(options.store)
    manifest, model = Manifest(folder, shard, store), _work(vae, load, folder, options).model()
    parse_bytes(memory, model.device)  # to refuse now what the run would
    config, bytes_per_position = model.config, _bytes_per_position(options, model)
    todo = find_jobs(sources, manifest, options, model.digest(), retry=retry)
    failed, outputs, frames, size, pixels = len(todo.failed) + len(todo.refused), 0, 0, 0, 0
    for job in todo.jobs:
        try:
            with open_source(job.source, options, config) as clip:
                info, parts = cut(job.source.path, clip.info, options, config)
        except UserError:
            failed += 1
            continue
        side = config.spatial_compression
        for part in parts:
            times = 1 + -(-(part.frames - 1) // config.temporal_compression)
            positions = times * -(-info.height // side) * -(-info.width // side)
            outputs, frames, size = outputs + 1, frames + part.frames, size + positions * bytes_per_position
            pixels += part.frames * info.width * info.height
    done = list(manifest.records)
    known = sum(record.frames * record.width * record.height for record in done)
    seconds = sum(record.seconds for record in done) / known * pixels if known else None
    clips = len(todo.jobs) + len(todo.failed) + len(todo.refused) - failed
    pruned = len(manifest.former()) if prune and shard[1] == 1 else 0
    if prune and shard[0] == 0:
        gone = gone_clips(manifest, {item.label for item in listed}, unread)
        pruned += sum(len(manifest.outputs_of(label)) for label in gone)
    return Estimate(clips, outputs, frames, todo.kept, failed, size, seconds, pruned)


def _bytes_per_position(options: CacheOptions, model: "WanVAE") -> int:
    """Return the bytes that a file of the cache has for each place in the latents (t, h, w)."""
    import torch

    from wan_vae.interchange.formats import FORMATS, MUSUBI_MASK

    form = FORMATS.get(options.format)
    dtype = (form and form.dtype) or model.dtype
    if options.values == "raw":
        dtype = torch.promote_types(dtype, torch.float32)
    channels = model.config.latent_channels * (2 if options.posterior or options.i2v else 1)
    return (channels + (MUSUBI_MASK if options.i2v else 0)) * dtype.itemsize


def verify_cache(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    vae: "WanVAE | str | Path",
    *,
    options: CacheOptions | None = None,
    count: int = 8,
    memory: "Budget" = "auto",
    load: "Loader | None" = None,
) -> Verification:
    """Encode some clips of a cache again, spread over its manifest, and compare the bytes of their outputs.

    `source`, `options`, `memory` and `load` are those of `cache_latents`.

    Raises:
        UserError: As by `cache_latents`; or `out` is no cache, or none of its clips is in `source`.
    """
    from wan_vae.dataset.engines import encode_jobs

    folder, options = check_path("out", out), complete_options(options, vae)
    records = Manifest.of_cache(folder).records
    cached = {(record.source, record.part): record.output for record in records}
    if all(record.key.options != options.digest() for record in records):
        raise UserError(f"{folder} was made with other options than these; give those that it was made with.")
    names = sorted({source for source, _ in cached})
    wanted = set(names[:: max(1, len(names) // check_count("count", count))][:count])
    sources = [item for item in find_sources(source, folder, options)[0] if item.label in wanted]
    if not sources:
        raise UserError(f"{source} has none of the clips of {folder}.")
    differing, outputs, options = [], Outputs(folder), replace(options, store=None)
    with tempfile.TemporaryDirectory(prefix="wan_vae_verify_") as place:
        work = _work(vae, load, Path(place), options, memory)
        model = work.model()
        todo = find_jobs(sources, Manifest(Path(place)), options, model.digest(), retry=True)
        for job, reason in todo.refused:
            raise UserError(f"{job.source.label} cannot be encoded again: {reason}")
        for done in encode_jobs(model, todo.jobs, work, lambda: None):
            if done.error is not None:
                raise UserError(f"{done.job.source.label} cannot be encoded again: {done.error}")
            for record in done.records:
                output, again = cached.get((record.source, record.part), record.output), Path(place) / record.output
                stored = outputs.path(output)
                if not stored.is_file() or stored.read_bytes() != again.read_bytes():
                    differing.append(output)
                again.unlink()
    return Verification(len(todo.jobs), differing)


def _work(
    vae: "WanVAE | str | Path",
    load: "Loader | None",
    folder: Path,
    options: CacheOptions,
    memory: "Budget" = "auto",
) -> "Work":
    from wan_vae.dataset.engines import Work

    return Work(vae, load or default_loader(options), folder, options, memory, threads=2)
