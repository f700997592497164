"""What a benchmark might be asked for and have found."""

from typing import Any

from wan_vae.benchmark import run as record
from wan_vae.benchmark.implementations import OURS, THEIRS
from wan_vae.benchmark.job import Job
from wan_vae.benchmark.measure import Peak, Spent, Work
from wan_vae.benchmark.run import Accuracy, Call, Profile

SECONDS = {
    Call("encode", "fp32", OURS): [1.0, 2.0, 1.0],
    Call("encode", "fp32", THEIRS): [2.0, 2.0, 3.0],
    Call("encode", "bf16", OURS): [0.5, 0.5, 0.4],
    Call("encode", "bf16", THEIRS): [1.0, 0.5, 0.5],
}
WORK = {
    call: Work(flops=4_000_000_000, values=100) if call.implementation == OURS else Work(8_000_000_000, 200)
    for call in SECONDS
}
MATMUL = {"fp32": 8e9, "bf16": 16e9}
COPY = 1000.0


def make_job(*, width: int = 16, height: int = 16, frames: int = 5) -> Job:
    """Return a job of one call, whose clip fits Wan2.1."""
    return Job(
        checkpoint=None,
        preset="tiny",
        width=width,
        height=height,
        frames=frames,
        device="cpu",
        dtypes=("fp32",),
        directions=("encode",),
        runs=1,
        warmup=0,
        threads=None,
        errors=False,
        profile=False,
        tune=False,
    )


def make_record(*, alone: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Return a record, of ours alone if asked for; on CUDA with reserved memory, elsewhere without."""
    seconds = {call: times for call, times in SECONDS.items() if not alone or call.implementation == OURS}
    peaks = [Peak(held * 2**20, (held + 2) * 2**20) if device == "cuda" else Peak(None) for held in (2, 9, 3)]
    accuracies = {call: Accuracy((0.5, 0.25), 1.0) for call in seconds}
    profile = Profile("encode", "fp32", [Spent(f"layer {index}", 0.25, 2) for index in range(17)], [])
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "wan_vae": "0.1.0, commit abc",
        "torch": "2.9",
        "diffusers": None if alone else "0.35",
        "machine": {"device": device, "name": "A Machine", "cores": 8, "instructions": [], "threads": 1},
        "model": {"name": "tiny", "weights": "random, seed 0"},
        "clip": {"frames": 5, "width": 32, "height": 16},
        "runs": 3,
        "ceilings": {"matmul_flops_per_second": MATMUL, "copy_bytes_per_second": COPY},
        "results": record.results(seconds, dict.fromkeys(seconds, peaks), WORK, MATMUL, COPY),
        "ratios": record.ratios(seconds),
        "errors": record.errors(accuracies, THEIRS),
        "profiles": record.profiles([profile]),
    }
