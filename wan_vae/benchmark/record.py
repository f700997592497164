"""What was measured and what follows from it, as JSON types: what is written, printed and shown in the README."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from wan_vae.benchmark.accuracy import Accuracy
from wan_vae.benchmark.implementations import OURS, THEIRS, TORCH_DTYPES
from wan_vae.benchmark.memory import Peak
from wan_vae.benchmark.ratios import times_as_fast
from wan_vae.benchmark.session import Call, Profile
from wan_vae.benchmark.work import Work

Record = dict[str, Any]
WIDEST = "fp32"


def results(
    seconds: Mapping[Call, list[float]],
    peaks: Mapping[Call, list[Peak]],
    work: Mapping[Call, Work],
    matmul: Mapping[str, float],
    copy: float,
) -> list[Record]:
    """Return one entry for each call: its times, its memory, and its shares of what the machine can do.

    Args:
        seconds: Of each run.
        peaks: Memory that calls add.
        work: What the call computes.
        matmul: FLOP/s of matrix products at best, by dtype.
        copy: Bytes read and written a second at best.
    """
    found = []
    for call, times in seconds.items():
        done, middle = work[call], median(times)
        flops_per_second = done.flops / middle
        bytes_per_second = done.values * TORCH_DTYPES[call.dtype].itemsize / middle
        found.append(
            {
                **call._asdict(),
                "seconds": times,
                "median_seconds": middle,
                "peak_bytes": _median([peak.held for peak in peaks[call]]),
                "peak_reserved_bytes": _median([peak.reserved for peak in peaks[call]]),
                "peaks": [asdict(peak) for peak in peaks[call]],
                "flops": done.flops,
                "flops_per_second": flops_per_second,
                "share_of_matmul": flops_per_second / matmul[call.dtype],
                "bytes_per_second": bytes_per_second,
                "share_of_copy": bytes_per_second / copy,
            }
        )
    return found


def _median(measured: Sequence[int | None]) -> int | None:
    counts = [count for count in measured if count is not None]
    return round(median(counts)) if counts else None


def ratios(seconds: Mapping[Call, list[float]]) -> list[Record]:
    """Return how many times as fast we are: in each dtype, than the other in the same dtype and in float32."""
    found = []
    for call, times in seconds.items():
        if call.implementation != OURS:
            continue
        for against in dict.fromkeys((call.dtype, WIDEST)):
            theirs = seconds.get(Call(call.direction, against, THEIRS))
            if theirs is not None:
                ratio = asdict(times_as_fast(times, theirs))
                found.append({"direction": call.direction, "dtype": call.dtype, "against": against, **ratio})
    return found


def errors(accuracies: Mapping[Call, Accuracy], judge: str) -> Record:
    """Return the errors of all outputs, and what they were compared with."""
    return {
        "reference": f"{judge} in float64",
        "outputs": [{**call._asdict(), **accuracy.to_dict()} for call, accuracy in accuracies.items()],
    }


def profiles(found: list[Profile]) -> list[Record]:
    """Return where our time goes."""
    return [
        {
            "direction": each.direction,
            "dtype": each.dtype,
            "layers": [asdict(spent) for spent in each.layers],
            "operations": [asdict(spent) for spent in each.operations],
        }
        for each in found
    ]
