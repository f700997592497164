"""`wan-vae benchmark`: speed, memory and accuracy compared with diffusers and OpenVINO."""

import json
from pathlib import Path
from typing import Annotated

import typer

from wan_vae.benchmark import DIRECTIONS, DTYPES, BenchmarkConfig
from wan_vae.cli import options
from wan_vae.errors import UserError
from wan_vae.io.atomic_output import check_output, written_beside

PRESET = "wan2.1"


def benchmark(
    checkpoint: Annotated[
        str | None, typer.Option(help="A trained model: a file, a folder or a name.", metavar="NAME|PATH")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Random weights for this config, a preset's name or a YAML file; default {PRESET}.",
            metavar="NAME|PATH",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="Size of the clip, which is synthetic.", metavar="WIDTHxHEIGHT")
    ] = "256x256",
    frames: Annotated[int, typer.Option(min=1, help="Frames of the clip: 1 + 4k.")] = 17,
    device: options.DeviceOption = "auto",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help=f"Dtypes to compute in: some of {','.join(DTYPES)}; default fp32,bf16.", metavar="DTYPES"),
    ] = None,
    directions: Annotated[str, typer.Option(help="Directions to time.", metavar="DIRECTIONS")] = ",".join(DIRECTIONS),
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each implementation, direction and dtype.")] = 3,
    warmup: Annotated[
        int, typer.Option(min=0, help="Untimed calls of each after a first one; they measure memory.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each implementation; default torch's choice.")
    ] = None,
    errors: Annotated[bool, typer.Option("--errors/--no-errors", help="Compare outputs with float64.")] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print the time of each layer and operation of this library.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="First measure which kernels are the fastest for this size, and store the result on this machine. For"
            " NVIDIA GPUs; takes minutes.",
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this JSON file.")] = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Measure the speed, with that of diffusers.

    Both run on the same weights and the same clip, in alternating runs. On CPUs, this library's model in OpenVINO runs
    beside them where the package openvino is installed.

    Ratios compare consecutive runs, with their median, least and most: above 1, this library takes less time. Memory is
    what a call adds to the loaded model and its input.
    """
    if checkpoint is not None and preset is not None:
        raise UserError("--checkpoint and --preset exclude each other; pass one of them.")
    width, height = options.parse_size(size) or (0, 0)
    dtypes = _parse_list("--dtype", dtype or ["fp32,bf16"], DTYPES)
    chosen_directions = _parse_list("--directions", [directions], DIRECTIONS)
    if json_file is not None:
        sources = tuple(Path(source) for source in (checkpoint, preset) if source is not None)
        check_output(json_file, overwrite=overwrite, inputs=sources)

    from wan_vae.benchmark.report import report
    from wan_vae.benchmark.run import run_benchmark
    from wan_vae.cli.messages import Bar

    config = BenchmarkConfig(
        checkpoint=checkpoint,
        preset=PRESET if preset is None else preset,
        width=width,
        height=height,
        frames=frames,
        device=options.torch_device(device).type,
        dtypes=dtypes,
        directions=chosen_directions,
        runs=runs,
        warmup=warmup,
        threads=threads,
        errors=errors,
        profile=profile,
        tune=tune,
    )
    if config.device == "cpu":
        from wan_vae.ops.cpu.build import ensure_kernels

        ensure_kernels()
    with Bar(unit="step") as bar:
        record = run_benchmark(config, bar.describe)
    if json_file is not None:
        with written_beside(json_file, overwrite=overwrite) as beside:
            beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    typer.echo(report(record), nl=False)


def _parse_list(option: str, texts: list[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    words = [word.strip() for text in texts for word in text.split(",")]
    for word in words:
        if word not in allowed:
            raise UserError(f"{option} is {','.join(texts)!r}; it takes {', '.join(allowed)}, with commas between.")
    return tuple(dict.fromkeys(words))
