"""The record of a benchmark: times, ratios, shares of the machine's limits and errors, as JSON types."""

import subprocess
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from safetensors import safe_open

from wan_vae.benchmark.implementations import PEERS, TORCH_DTYPES, WAN_VAE
from wan_vae.benchmark.measure import PeakMemory, Work
from wan_vae.benchmark.worker import OUTPUT

Record = dict[str, Any]
BASELINE_DTYPE = "fp32"


class Case(NamedTuple):
    """One kind of call that is measured."""

    direction: str
    dtype: str
    implementation: str

    def __str__(self) -> str:
        return f"{self.implementation} {self.direction} {self.dtype}"


def frame_errors(output: Path, exact: Path) -> Record:
    """Return root mean square errors of each frame, their summary, and the root mean square of the exact output.

    The unit is that of raw latents, or of pixels in [-1, 1]. The files hold (B, C, T, H, W), read frame by frame.
    """
    with safe_open(output, framework="pt") as file, safe_open(exact, framework="pt") as exact_file:
        found, expected = file.get_slice(OUTPUT), exact_file.get_slice(OUTPUT)
        assert found.get_shape() == expected.get_shape()
        errors, squares = [], []
        for frame in range(found.get_shape()[2]):
            truth = expected[:, :, frame].double()
            errors.append((found[:, :, frame].double() - truth).square().mean().sqrt().item())
            squares.append(truth.square().mean().item())
    summary = {"mean": mean(errors), "first": errors[0], "last": errors[-1], "worst": max(errors)}
    return {**summary, "by_frame": tuple(errors), "scale": mean(squares) ** 0.5}


def results(
    seconds: Mapping[Case, Sequence[float]],
    peaks: Mapping[Case, Sequence[PeakMemory]],
    work: Mapping[Case, Work],
    matmul: Mapping[str, float],
    copy: float,
) -> list[Record]:
    """Return one entry for each case: its times, its memory, and its shares of the machine's limits.

    The limits are `matmul` in FLOP/s, by dtype, and `copy` in bytes read plus bytes written per second.
    """
    found = []
    for case, times in seconds.items():
        middle = median(times)
        flops_per_second = work[case].flops / middle
        bytes_per_second = work[case].elements * TORCH_DTYPES[case.dtype].itemsize / middle
        found.append(
            {
                **case._asdict(),
                "seconds": times,
                "median_seconds": middle,
                "peak_bytes": _median([peak.used for peak in peaks[case]]),
                "peak_reserved_bytes": _median([peak.reserved for peak in peaks[case]]),
                "peaks": [{"held": peak.used, "reserved": peak.reserved} for peak in peaks[case]],
                "flops": work[case].flops,
                "flops_per_second": flops_per_second,
                "share_of_matmul": flops_per_second / matmul[case.dtype],
                "bytes_per_second": bytes_per_second,
                "share_of_copy": bytes_per_second / copy,
            }
        )
    return found


def _median(measured: Sequence[int | None]) -> int | None:
    counts = [count for count in measured if count is not None]
    return round(median(counts)) if counts else None


def ratios(seconds: Mapping[Case, Sequence[float]]) -> list[Record]:
    """Return this library's speed-up in each dtype over each of `PEERS` in the same dtype and in float32."""
    found = []
    for case, times in seconds.items():
        for peer, against in product(PEERS, dict.fromkeys((case.dtype, BASELINE_DTYPE))):
            baseline = seconds.get(Case(case.direction, against, peer))
            if case.implementation == WAN_VAE and baseline is not None:
                place = {"direction": case.direction, "dtype": case.dtype, "over": peer, "against": against}
                found.append({**place, **speedup(times, baseline)})
    return found


def speedup(seconds: Sequence[float], baseline: Sequence[float]) -> Record:
    """Return the ratios baseline / seconds, pair by pair, and their median, least and most; above 1 is faster.

    The runs of a pair are close in time, so that a change in the machine's speed affects both.
    """
    pairs = tuple(slow / fast for fast, slow in zip(seconds, baseline, strict=True))
    return {"pairs": pairs, "median": median(pairs), "least": min(pairs), "most": max(pairs)}


def code_version() -> str:
    """Return the package's version and, in a git checkout, its commit, with "-dirty" if files were changed since."""
    root = Path(__file__).resolve().parents[2]
    described = None
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            described = None  # git is not installed, or does not trust this folder
    # Imported late, since it imports all modules; where the package is not installed, there is no metadata to ask.
    number = import_module("wan_vae").__version__
    return number if described is None else f"{number}, commit {described}"
