"""Measure what OMP_WAIT_POLICY=PASSIVE does to the speed of `wan-vae reconstruct`, on an idle or a busy machine."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
BUSY_LOOP = "while True: pass"
app = typer.Typer(name="measure_wait_policy", add_completion=False, rich_markup_mode=None)


@app.command()
def measure_wait_policy(
    pairs: Annotated[int, typer.Option(min=1, help="Runs without and with the variable, alternately.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="OMP_NUM_THREADS of every run.")] = 2,
    busy: Annotated[int, typer.Option(min=0, help="Processes that compute during all runs.")] = 0,
    clip: Annotated[Path, typer.Option(help="The clip.")] = ROOT / "wan_vae" / "demo" / "bunny.mp4",
) -> None:
    """Reconstruct a clip alternately with OMP_WAIT_POLICY unset and PASSIVE, and print the medians and their ratio."""
    speeds: dict[str, list[float]] = {"unset": [], "PASSIVE": []}
    with tempfile.TemporaryDirectory() as folder, busy_loops(busy):
        reconstruct(clip, Path(folder), threads, "unset")  # compiles the kernels and reads the files
        for pair in range(pairs):
            # Either one is first in every other pair.
            for policy in sorted(speeds, reverse=pair % 2 == 0):
                speeds[policy].append(reconstruct(clip, Path(folder), threads, policy))
            last = ", ".join(f"{policy}: {found[-1]:.2f} frames/s" for policy, found in speeds.items())
            typer.echo(f"pair {pair + 1} of {pairs}: {last}", err=True)
    ratios = [passive / unset for passive, unset in zip(speeds["PASSIVE"], speeds["unset"], strict=True)]
    for policy, found in speeds.items():
        typer.echo(f"{policy}: median {statistics.median(found):.2f} frames/s of {len(found)} runs")
    typer.echo(f"PASSIVE / unset: median ratio {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def reconstruct(clip: Path, folder: Path, threads: int, policy: str) -> float:
    """Return the frames per second that a new process reports for a clip."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    if policy != "unset":
        environment["OMP_WAIT_POLICY"] = policy
    output = folder / "reconstruction.mp4"
    command = [sys.executable, "-m", "wan_vae", "reconstruct", str(clip), str(output), "--json", "--overwrite"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise typer.BadParameter(f"wan-vae reconstruct failed with exit code {run.returncode}:\n{run.stderr}")
    return float(json.loads(run.stdout)["frames_per_second"])


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Run processes that compute without end inside this context."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    app()
