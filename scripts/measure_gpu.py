"""Measurements that need an NVIDIA GPU: the kernel tests, then 480p and 720p against diffusers, into benchmarks/."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main
from wan_vae.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
app = typer.Typer(name="measure_gpu", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
SIZES = {"480p": "832x480", "720p": "1280x720"}


@app.command()
def measure_gpu(
    frames: Annotated[int, typer.Option(min=1, help="Of the clips: 1 + 4k.")] = 81,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 5,
    folder: Annotated[Path, typer.Option(help="Where speed_wan2.1_480p_cuda.json and its like go.")] = ROOT
    / "benchmarks",
) -> None:
    """Run the tests of the kernels on this machine's GPU, tune them for each size, and measure in bf16.

    `scripts/benchmark_table.py` then shows the figures in docs/speed.md.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"There is no NVIDIA GPU here that torch {torch.__version__} can use; run this where there is.")
    _run("-m", "pytest", "-q", "tests/ops", "tests/benchmark")
    for name, size in SIZES.items():
        result = folder / f"speed_wan2.1_{name}_cuda.json"
        # Of so many pixels float64 takes more memory than there is; small clips tell the errors.
        measured = ["--size", size, "--frames", str(frames), "--dtype", "bf16", "--runs", str(runs), "--no-errors"]
        _run("-m", "wan_vae", "benchmark", "--device", "cuda", "--tune", *measured, "--json", str(result))
    small = folder / "speed_wan2.1_cuda.json"
    _run("-m", "wan_vae", "benchmark", "--device", "cuda", "--tune", "--runs", str(runs), "--json", str(small))


def _run(*arguments: str) -> None:
    finished = subprocess.run([sys.executable, *arguments], cwd=ROOT)
    if finished.returncode:
        raise UserError(f"`python {' '.join(arguments)}` ended with {finished.returncode}; its own words are above.")


if __name__ == "__main__":
    main(program=app)
