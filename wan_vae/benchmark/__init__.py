"""Comparisons: this library, diffusers and OpenVINO on the same weights and inputs, and models on one clip."""

from dataclasses import dataclass

DIRECTIONS = ("encode", "decode")
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What to measure, and how many times."""

    checkpoint: str | None  # file, folder or name of a trained model; None for random weights
    preset: str  # name or YAML file of the architecture for random weights
    width: int  # of the clip, in pixels
    height: int
    frames: int
    device: str  # type, such as "cpu"
    dtypes: tuple[str, ...]  # subset of DTYPES
    directions: tuple[str, ...]  # subset of DIRECTIONS
    runs: int  # timed calls of each implementation, direction and dtype
    warmup: int  # untimed calls of each after a first one; all but the first count for peak memory
    threads: int | None  # on the CPU; None for torch's default
    errors: bool  # compare outputs with float64
    profile: bool  # profile this library by layer and by operation
    tune: bool  # autotune this library's GPU kernels first
