"""`wan-vae cache`: a folder or a list of clips to latents."""

import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wan_vae.cli import options, signals
from wan_vae.cli.common import encoder_dtype, load_model, print_result
from wan_vae.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

    from wan_vae.dataset import CacheResult


CacheFormat = Literal["wan-vae", "musubi", "tensor", "ai-toolkit", "simpletuner"]
"""A format of the files of a cache."""

Extraction = Literal["head", "chunk", "slide", "uniform", "full"]
"""How clips are cut in parts."""

_EXTRACTIONS = {"stride": "slide", "samples": "uniform", "most_frames": "full"}


def cache(
    source: Annotated[
        Path, typer.Argument(help="A folder of clips and images, or a list of them: .txt, .jsonl or .csv.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder of the cache.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    memory: options.MemoryOption = "auto",
    format: Annotated[CacheFormat, typer.Option(help="What the files are for.")] = "wan-vae",  # noqa: A002
    values: Annotated[
        options.Values | None, typer.Option(help="What --format tensor holds, default normalized.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="The model that --format ai-toolkit is for, default wan21 or wan22_5b.", metavar="NAME"),
    ] = None,
    size: options.ClipSizeOption = None,
    fit: options.FitOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    length: options.LengthOption = None,
    source_fps: Annotated[
        float | None,
        typer.Option(
            help="With --format musubi: keep the frames that musubi-tuner keeps of videos of this rate, to have 16 a"
            " second; its source_fps.",
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            help="Scale and cut each clip to the bucket of its aspect; buckets have the area of this size, and sides"
            " that are multiples of 16.",
            metavar="WIDTHxHEIGHT",
        ),
    ] = None,
    buckets: Annotated[
        bool, typer.Option(help="Without buckets, each clip is scaled and cut to --resolution itself.")
    ] = True,
    upscale: Annotated[bool, typer.Option(help="Enlarge clips that are smaller than their bucket.")] = True,
    extraction: Annotated[
        Extraction | None,
        typer.Option(help="Cut clips in parts: see docs/caching.md. Default: head with --target-frames, else none."),
    ] = None,
    target_frames: Annotated[
        str | None, typer.Option(help="Lengths of parts, such as 1,25,81.", metavar="N[,N...]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Frames between two parts with --extraction slide, default 1.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Parts of a clip with --extraction uniform, default 1.")
    ] = None,
    most_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames at most with --extraction full, default 129.")
    ] = None,
    posterior: options.PosteriorOption = False,
    store: Annotated[
        str | None,
        typer.Option(
            help="Where the files go, if not to OUT, which keeps the lists: a URL of any storage that fsspec knows,"
            " such as s3://bucket/latents.",
            metavar="URL",
        ),
    ] = None,
    i2v: Annotated[
        bool, typer.Option("--i2v", help="With --format musubi: what training of image-to-video models needs, too.")
    ] = False,
    shard: Annotated[
        str, typer.Option(help="Do part I of N of the work: one process of several, on any machine.", metavar="I/N")
    ] = "1/1",
    threads: Annotated[int, typer.Option(min=1, help="Clips that a process decodes at a time.")] = 2,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes, each on a GPU of its own, or with its share of the cores.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Do the work on a Ray cluster: its address, or auto for the one that this machine is part of. All"
            " nodes must see the clips and OUT under the same paths. --devices is then how many actors work, 1 for all"
            " that fit.",
            metavar="auto|ADDRESS",
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Remove the files of clips that are not in SOURCE, deleted or renamed ones, and those left of clips"
            " that changed or of other options.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    verify: Annotated[
        int, typer.Option(min=0, help="Encode this many clips of the cache again, and compare the bytes.", metavar="N")
    ] = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Encode all clips of SOURCE into OUT. What is there already, of the same clip and options, is skipped.

    Clips that cannot be encoded are listed in failures.jsonl, with the reason, and the others go on; then the exit code
    is 1.
    """
    from wan_vae.dataset import CacheOptions, Extract, estimate_cache, verify_cache

    lengths = _lengths(target_frames)
    extract = None
    if lengths and extraction is None:
        extraction = "head"
    details = {"stride": stride, "samples": samples, "most_frames": most_frames}
    given = {name: value for name, value in details.items() if value is not None}
    for name, value in given.items():
        if extraction != _EXTRACTIONS[name]:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is {value}, which is for --extraction {_EXTRACTIONS[name]} alone.")
    if extraction is not None:
        extract = Extract(extraction, lengths, **given)
    chosen = CacheOptions(
        format=format,
        values=values,
        **options.parse_selection(size, fit, frames, fps, length),
        resolution=options.parse_size(resolution, "--resolution"),
        source_fps=source_fps,
        buckets=buckets,
        upscale=upscale,
        extract=extract,
        posterior=posterior,
        i2v=i2v,
        dtype=encoder_dtype(device, dtype),
        architecture=architecture,
        store=store,
    )

    # Other processes need it, so it is no function in a function.
    common: dict[str, Any] = {"options": chosen, "load": partial(load_model, device=device, dtype=dtype)}
    if verify:
        others = {"--dry-run": dry_run, "--prune": prune, "--retry": retry, "--ray": ray, "--shard": shard != "1/1"}
        if idle := [name for name, value in others.items() if value]:
            raise UserError(
                f"--verify encodes clips of the whole cache again and changes nothing; leave out {idle[0]}."
            )
        found = verify_cache(source, out, checkpoint, count=verify, memory=memory, **common)
        print_result({"verified": found.verified, "differing": found.differing or None}, as_json=as_json)
        if found.differing:
            raise typer.Exit(1)
        return
    part = _shard(shard)
    if dry_run:
        expected = estimate_cache(
            source, out, checkpoint, memory=memory, shard=part, retry=retry, prune=prune, **common
        )
        print_result(vars(expected), as_json=as_json)
        return
    run_cache(
        source,
        out,
        checkpoint,
        as_json=as_json,
        memory=memory,
        shard=part,
        threads=threads,
        devices=devices,
        ray=ray,
        retry=retry,
        prune=prune,
        **common,
    )


def run_cache(source: Path | list[Path], out: Path, checkpoint: str, *, as_json: bool, **arguments: Any) -> None:
    """Call `cache_latents` with a bar, print its result, and exit with 1 if clips failed."""
    from wan_vae.dataset import cache_latents

    with _Progress() as progress:
        result = cache_latents(source, out, checkpoint, progress=progress, **arguments)
    rate = result.frames / result.seconds if result.seconds else None
    waited = result.waited / result.seconds if result.seconds else None
    print_result({"output": out, **vars(result), "frames_per_second": rate, "share_waited": waited}, as_json=as_json)
    if result.failed:
        raise typer.Exit(1)


class _Progress(ExitStack):
    """A bar of clips on standard error. Signals wait for its next call."""

    _bar: "tqdm[Any] | None" = None

    def __call__(self, result: "CacheResult") -> None:
        if self._bar is None:
            from wan_vae.cli.messages import Bar

            self.enter_context(signals.deferred())
            bar = Bar(total=result.total, initial=result.kept + result.failed, unit="clip")
            self._bar = self.enter_context(bar)
        signals.check_interrupted()
        rate = f"{result.frames / result.seconds:.1f}" if result.seconds else "-"
        self._bar.set_postfix_str(f"{rate} frames/s, {result.failed} failed", refresh=False)
        self._bar.update(result.kept + result.cached + result.failed - self._bar.n)


def _lengths(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if re.fullmatch(r"[1-9]\d{0,6}(,[1-9]\d{0,6})*", text) is None:
        raise UserError(f"--target-frames is {text!r}; write lengths such as 1,25,81.")
    return tuple(int(length) for length in text.split(","))


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"--shard is {text!r}; write it as I/N, from 1/N to N/N.")
    return int(match[1]) - 1, int(match[2])
