"""A benchmark's configuration and a record with made-up measurements."""

from dataclasses import asdict
from typing import Any

from wan_vae.benchmark import BenchmarkConfig, record
from wan_vae.benchmark.implementations import DIFFUSERS, OPENVINO, WAN_VAE
from wan_vae.benchmark.measure import PeakMemory, ProfileEntry, Work
from wan_vae.benchmark.record import Case

SECONDS = {
    Case("encode", "fp32", WAN_VAE): [1.0, 2.0, 1.0],
    Case("encode", "fp32", DIFFUSERS): [2.0, 2.0, 3.0],
    Case("encode", "fp32", OPENVINO): [3.0, 3.0, 4.0],
    Case("encode", "bf16", WAN_VAE): [0.5, 0.5, 0.4],
    Case("encode", "bf16", DIFFUSERS): [1.0, 0.5, 0.5],
}
WORK = {
    case: Work(flops=4_000_000_000, elements=100) if case.implementation == WAN_VAE else Work(8_000_000_000, 200)
    for case in SECONDS
}
MATMUL = {"fp32": 8e9, "bf16": 16e9}
COPY = 1000.0


def make_config(*, width: int = 16, height: int = 16, frames: int = 5) -> BenchmarkConfig:
    """Return a configuration of one call, whose clip fits Wan2.1."""
    return BenchmarkConfig(
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
    """Return a record, of this library alone if asked for; on CUDA with reserved memory, elsewhere without."""
    seconds = {case: times for case, times in SECONDS.items() if not alone or case.implementation == WAN_VAE}
    peaks = [
        PeakMemory(used * 2**20, (used + 2) * 2**20) if device == "cuda" else PeakMemory(None) for used in (2, 9, 3)
    ]
    errors = {"mean": 0.375, "first": 0.5, "last": 0.25, "worst": 0.5, "by_frame": (0.5, 0.25), "scale": 1.0}
    layers = [asdict(ProfileEntry(f"layer {index}", 0.25, 2)) for index in range(17)]
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "wan_vae": "0.1.0, commit abc",
        "torch": "2.9",
        "diffusers": None if alone else "0.35",
        "openvino": None if alone else "2026.4",
        "machine": {"device": device, "name": "A Machine", "cores": 8, "instructions": [], "threads": 1},
        "model": {"name": "tiny", "weights": "random, seed 0"},
        "clip": {"frames": 5, "width": 32, "height": 16},
        "runs": 3,
        "ceilings": {"matmul_flops_per_second": MATMUL, "copy_bytes_per_second": COPY},
        "results": record.results(seconds, dict.fromkeys(seconds, peaks), WORK, MATMUL, COPY),
        "ratios": record.ratios(seconds),
        "errors": {
            "reference": "diffusers in float64",
            "outputs": [{**case._asdict(), **errors} for case in seconds],
        },
        "profiles": [{"direction": "encode", "dtype": "fp32", "layers": layers, "operations": []}],
    }
