"""Whole pictures and tiles, ours and diffusers': peak of memory, time, and error, each measured in a new process."""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main

if TYPE_CHECKING:
    from torch import Tensor

    from wan_vae.config import VAEConfig

app = typer.Typer(name="measure_tiling", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
HEAD = ["call", "who", "plan", "predicted MiB", "peak MiB", "seconds", "times whole", "largest difference from whole"]
CALLS = ("encode", "decode")
# Whole pictures come first: the others are compared with them. Who tiles, and whether.
OURS, OURS_TILED, THEIRS, THEIRS_TILED = "wan_vae", "wan_vae, tiled", "diffusers", "diffusers, tiled"


@app.command()
def measure_tiling(
    size: Annotated[str, typer.Option(help="Of the clip.", metavar="HEIGHTxWIDTH")] = "720x1280",
    frames: Annotated[int, typer.Option(min=1, help="Of the clip; 1 + 4k.")] = 9,
    memory: Annotated[str, typer.Option(help="The budget of the tiled calls.", metavar="SIZE")] = "3GiB",
    preset: Annotated[str, typer.Option(help="The architecture, with random weights.")] = "wan2.1",
    checkpoint: Annotated[str | None, typer.Option(help="Weights to take instead.", metavar="NAME|PATH")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help=f"Leave out one of: {OURS}; {THEIRS}; {THEIRS_TILED}. May be repeated.")
    ] = None,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure encode and decode in float32 on the CPU, and print one table."""
    height, width = (int(number) for number in size.split("x"))
    if one is not None:
        typer.echo(json.dumps(measured(json.loads(one), frames, height, width, memory, preset, checkpoint)))
        return
    rows = []
    with TemporaryDirectory() as folder:
        for call in CALLS:
            whole: dict[str, Any] | None = None
            for who in (OURS, OURS_TILED, THEIRS, THEIRS_TILED):
                if who in (skip or []):
                    continue
                job = {"who": who, "call": call, "folder": folder}
                command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps(job)]
                ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
                if ended.returncode:
                    rows.append([call, who, f"failed with exit code {ended.returncode}", "", "", "", ""])
                    continue
                row = json.loads(ended.stdout.splitlines()[-1])
                whole = row if who == OURS else whole
                predicted, peak, seconds = row["predicted"], f"{row['peak'] / 2**20:.0f}", f"{row['seconds']:.1f}"
                times = f"{row['seconds'] / whole['seconds']:.2f}" if whole is not None else ""
                error = "" if row["difference"] is None else f"{row['difference']:.1e}"
                rows.append([call, who, row["plan"], predicted, peak, seconds, times, error])
    weights = f"{preset}, random weights" if checkpoint is None else checkpoint
    typer.echo(f"{weights}, {frames} frames of {height}x{width}, float32 on the CPU, memory={memory}\n")
    print_table(HEAD, rows)


def measured(
    job: dict[str, str], frames: int, height: int, width: int, memory: str, preset: str, checkpoint: str | None
) -> dict[str, Any]:
    """Run one call in this process, after a small one that compiles and allocates what every call needs."""
    import torch

    from wan_vae.benchmark.measure import measure_memory
    from wan_vae.ops.cpu.build import ensure_kernels

    ensure_kernels()
    who, call = job["who"], job["call"]
    ours = who in (OURS, OURS_TILED)
    with torch.inference_mode():
        run, config, plan = (
            our_call(call, frames, height, width, who, memory, preset, checkpoint)
            if ours
            else (
                *their_call(call, who, preset, checkpoint),
                None,
            )
        )
        x, small = inputs(call, config, frames, height, width), inputs(call, config, 5, 64, 64)
        run(small, False)
        start = time.perf_counter()
        result, peak = measure_memory(lambda: run(x, True), torch.device("cpu"))
        seconds = time.perf_counter() - start
    return {
        "peak": peak.used,
        "seconds": seconds,
        "plan": "" if plan is None else plan.cut,
        "predicted": "" if plan is None else f"{plan.peak / 2**20:.0f}",
        "difference": difference(result, Path(job["folder"]) / f"{call}.pt", keep=who in (OURS, THEIRS)),
    }


def inputs(call: str, config: "VAEConfig", frames: int, height: int, width: int) -> "Tensor":
    """Return what all implementations get: noise that is smooth where it is pixels."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    if call == "encode":
        coarse = 2 * torch.rand(1, 3, frames, height // 8, width // 8, generator=generator) - 1
        return F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)
    side, unit = config.spatial_compression, config.temporal_compression
    size = (1, config.latent_channels, 1 + (frames - 1) // unit, height // side, width // side)
    return torch.randn(size, generator=generator)


def our_call(
    call: str, frames: int, height: int, width: int, who: str, memory: str, preset: str, checkpoint: str | None
) -> tuple[Any, "VAEConfig", Any]:
    """Return a function of the input and whether the budget holds for it, the architecture, and the plan."""
    vae = weights_of(preset, checkpoint)
    tiled = who == OURS_TILED
    plan = vae.plan(call, frames=frames, height=height, width=width, memory=memory) if tiled else None

    def run(x: "Tensor", with_budget: bool) -> "Tensor":
        budget = memory if tiled and with_budget else None
        if call == "decode":
            return vae.decode(vae.normalize(x), memory=budget)
        return vae.posterior(x, memory=budget).mode()

    return run, vae.config, plan


def their_call(call: str, who: str, preset: str, checkpoint: str | None) -> tuple[Any, "VAEConfig"]:
    """Return a function of the input, and the architecture."""
    from diffusers import AutoencoderKLWan

    ours = weights_of(preset, checkpoint)
    with TemporaryDirectory() as folder:
        ours.save(Path(folder) / "vae", layout="diffusers")
        theirs = AutoencoderKLWan.from_pretrained(Path(folder) / "vae")
    config = ours.config
    del ours
    theirs.eval().requires_grad_(False)
    if who == THEIRS_TILED:
        theirs.enable_tiling()

    def run(x: "Tensor", with_budget: bool) -> "Tensor":
        return theirs.decode(x).sample if call == "decode" else theirs.encode(x).latent_dist.mode()

    return run, config


def weights_of(preset: str, checkpoint: str | None) -> Any:
    """Return our VAE in float32."""
    import torch

    from wan_vae import WanVAE
    from wan_vae.benchmark.inputs import random_weights
    from wan_vae.config import load_config

    if checkpoint is not None:
        return WanVAE.from_pretrained(checkpoint, dtype=torch.float32)
    config = load_config(preset)
    return WanVAE.from_weights(config, random_weights(config))


def difference(result: "Tensor", whole: Path, *, keep: bool) -> float | None:
    """Return the largest difference from the first whole picture, relative to its largest value, if there is one."""
    import torch

    if not whole.exists():
        if keep:
            torch.save(result.contiguous(), whole)
        return None
    first = torch.load(whole, mmap=True)
    return ((result - first).abs().max() / first.abs().max()).item()


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print rows as a Markdown table."""
    typer.echo(f"| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |")
    for row in rows:
        typer.echo(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(program=app)
