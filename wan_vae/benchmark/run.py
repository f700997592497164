"""A benchmark from start to end.

How far an output is from the same in float64, latent by latent or frame by frame.

The measurements of a benchmark, each asked of the workers in turn.

How many times as fast, from runs in turn.

What was measured and what follows from it, as JSON types: what is written, printed and shown in the README.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from wan_vae.benchmark.implementations import OURS, THEIRS, TORCH_DTYPES, obstacle
from wan_vae.benchmark.job import Job, open_weights, write_inputs
from wan_vae.benchmark.measure import Peak, Spent, Work, describe_machine
from wan_vae.benchmark.worker import OUTPUT, Setup, Worker
from wan_vae.evaluation.evaluate import code_version


@dataclass(frozen=True)
class Accuracy:
    """Root mean square errors of an output.

    Attributes:
        by_frame: Of each frame (or latent), in the output's own unit: raw latents, or pixels in [-1, 1].
        scale: Root mean square of the whole output.
    """

    by_frame: tuple[float, ...]
    scale: float

    def to_dict(self) -> dict[str, Any]:
        """Return the errors, and of them the mean, first, last and worst, as JSON types."""
        errors = self.by_frame
        return {"mean": mean(errors), "first": errors[0], "last": errors[-1], "worst": max(errors)} | asdict(self)


def compare(output: Path, truth: Path) -> Accuracy:
    """Compare two files that hold (B, C, T, H, W), frame by frame, so that no more than a frame is in memory."""
    with safe_open(output, framework="pt") as found, safe_open(truth, framework="pt") as exact:
        ours, theirs = found.get_slice(OUTPUT), exact.get_slice(OUTPUT)
        assert ours.get_shape() == theirs.get_shape()
        errors, squares = [], []
        for frame in range(ours.get_shape()[2]):
            expected: Tensor = theirs[:, :, frame].double()
            errors.append((ours[:, :, frame].double() - expected).square().mean().sqrt().item())
            squares.append(expected.square().mean().item())
    return Accuracy(tuple(errors), mean(squares) ** 0.5)


class Call(NamedTuple):
    """What is called, as often as a job says."""

    direction: str
    dtype: str
    implementation: str

    def __str__(self) -> str:
        return f"{self.implementation} {self.direction} {self.dtype}"


class Profile(NamedTuple):
    """Where the time of one of our calls goes, most first."""

    direction: str
    dtype: str
    layers: list[Spent]
    operations: list[Spent]


class Session:
    """Workers, and what a job asks of them.

    Args:
        job: What to measure.
        workers: By implementation, ours first.
        folder: For outputs, which can be large.
        say: Is told what is going on.
    """

    def __init__(self, job: Job, workers: Mapping[str, Worker], folder: Path, say: Callable[[str], None]) -> None:
        self._job = job
        self._workers = workers
        self._folder = folder
        self._say = say

    def versions(self) -> dict[str, str]:
        """Return the version of each implementation."""
        return {name: worker.ask("version") for name, worker in self._workers.items()}

    def threads(self) -> int:
        """Return how many threads an operation takes."""
        threads: int = self._workers[OURS].ask("threads")
        return threads

    def work(self) -> dict[Call, Work]:
        """Count what each call computes."""
        return {
            call: self._workers[call.implementation].ask("work", call.direction, call.dtype)
            for call in self._round("counting operations of ")
        }

    def matmul_ceilings(self) -> dict[str, float]:
        """Return the FLOP/s of matrix products at best, by dtype."""
        self._say("matrix products")
        return {dtype: self._workers[OURS].ask("matmul_ceiling", dtype) for dtype in self._job.dtypes}

    def copy_ceiling(self) -> float:
        """Return the bytes read and written a second at best."""
        self._say("copies")
        ceiling: float = self._workers[OURS].ask("copy_ceiling")
        return ceiling

    def load(self) -> None:
        """Have every worker load its implementation in every dtype."""
        for (name, worker), dtype in product(self._workers.items(), self._job.dtypes):
            self._say(f"loading {name} {dtype}")
            worker.ask("load", dtype)

    def tune(self) -> None:
        """Have our worker choose its kernels."""
        for direction, dtype in product(self._job.directions, self._job.dtypes):
            self._say(f"choosing kernels for {direction} {dtype}")
            self._workers[OURS].ask("tune", direction, dtype)

    def peaks(self) -> dict[Call, list[Peak]]:
        """Call everything before it is timed, for its memory, and keep the last outputs if errors are asked for.

        The first calls count only if there are no others, for code that runs for the first time comes into memory, too.
        """
        found: dict[Call, list[Peak]] = {}
        for _ in range(self._job.warmup + 1):
            for call in self._round():
                output = self._output(call) if self._job.errors else None
                peak = self._workers[call.implementation].ask("measure", call.direction, call.dtype, output)
                found.setdefault(call, []).append(peak)
        return {call: peaks[1:] or peaks for call, peaks in found.items()}

    def seconds(self) -> dict[Call, list[float]]:
        """Time everything, round by round."""
        found: dict[Call, list[float]] = {}
        for _ in range(self._job.runs):
            for call in self._round():
                seconds = self._workers[call.implementation].ask("seconds", call.direction, call.dtype)
                found.setdefault(call, []).append(seconds)
        return found

    def profiles(self) -> list[Profile]:
        """Ask where our time goes."""
        found = []
        for direction, dtype in product(self._job.directions, self._job.dtypes):
            self._say(f"profile of {direction} {dtype}")
            layers, operations = (
                self._workers[OURS].ask(question, direction, dtype)
                for question in ("time_by_layer", "time_by_operation")
            )
            found.append(Profile(direction, dtype, layers, operations))
        return found

    def accuracies(self, judge: str) -> dict[Call, Accuracy]:
        """Compare the outputs that were kept with those of one implementation in float64."""
        found = {}
        for direction in self._job.directions:
            self._say(f"{judge} {direction} in float64")
            truth = self._folder / f"{direction}.safetensors"
            self._workers[judge].ask("reference", direction, truth)
            for call in self._calls(direction):
                found[call] = compare(self._output(call), truth)
        return found

    def _round(self, doing: str = "") -> Iterator[Call]:
        for direction in self._job.directions:
            for call in self._calls(direction):
                self._say(f"{doing}{call}")
                yield call

    def _calls(self, direction: str) -> list[Call]:
        return [Call(direction, dtype, name) for dtype, name in product(self._job.dtypes, self._workers)]

    def _output(self, call: Call) -> Path:
        return self._folder / f"{'-'.join(call)}.safetensors"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast we are: above 1, we take less time.

    Attributes:
        pairs: Of each run and the other's run beside it, which had the same machine at nearly the same moment.
        median: Of those.
        least: Of those.
        most: Of those.
    """

    pairs: tuple[float, ...]
    median: float
    least: float
    most: float


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare the seconds of our runs with those of the other's."""
    pairs = tuple(their / our for our, their in zip(ours, theirs, strict=True))
    return Ratio(pairs, median(pairs), min(pairs), max(pairs))


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


def profile_records(found: list[Profile]) -> list[Record]:
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


def run_benchmark(job: Job, say: Callable[[str], None]) -> Record:
    """Measure and return all that was found, as JSON types.

    Everything is called to warm up, for its memory and its output, then in rounds that are timed: each round calls each
    implementation in each dtype, in turn.

    Args:
        job: What to measure.
        say: Is told what is going on.

    Raises:
        UserError: The model is not there, the clip does not fit it, or an implementation cannot do what is asked.
    """
    say("weights and inputs")
    with TemporaryDirectory(prefix="wan-vae-benchmark-") as name, ExitStack() as running:
        folder = Path(name)
        vae, origin = open_weights(job)
        config, reason = vae.config, obstacle(vae.config)
        names = [OURS] if reason else [OURS, THEIRS]
        if reason:
            _tell_of_absence(reason)
        weights = folder / ("weights.safetensors" if reason else "weights")
        vae.save(weights, layout="wan" if reason else "diffusers")
        del vae  # the workers need the memory
        inputs = folder / "inputs.safetensors"
        shapes = write_inputs(job, config, inputs)
        setup = partial(Setup, config=config, weights=weights, inputs=inputs, device=job.device, threads=job.threads)
        workers = {name: running.enter_context(Worker(setup(name))) for name in names}
        if THEIRS in workers and (reason := workers[THEIRS].ask("unusable")) is not None:
            _tell_of_absence(reason)
            del workers[THEIRS]

        session = Session(job, workers, folder, say)
        judge = THEIRS if THEIRS in workers else OURS
        versions = session.versions()
        work, matmul, copy = session.work(), session.matmul_ceilings(), session.copy_ceiling()
        session.load()
        if job.tune:
            session.tune()
        peaks, seconds = session.peaks(), session.seconds()
        profiles = session.profiles() if job.profile else None
        accuracies = session.accuracies(judge) if job.errors else None
        threads = session.threads()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wan_vae": code_version(),
        "torch": torch.__version__,
        "diffusers": versions.get(THEIRS),
        "machine": {**describe_machine(job.device), "threads": threads},
        "model": {
            "name": job.preset if job.checkpoint is None else Path(job.checkpoint).name,
            "weights": origin,
            "config": config.to_dict(),
        },
        "clip": {"frames": job.frames, "width": job.width, "height": job.height, **shapes},
        "warmup": job.warmup,
        "runs": job.runs,
        "ceilings": {"matmul_flops_per_second": matmul, "copy_bytes_per_second": copy},
        "results": results(seconds, peaks, work, matmul, copy),
        "ratios": ratios(seconds),
        "errors": None if accuracies is None else errors(accuracies, judge),
        "profiles": None if profiles is None else profile_records(profiles),
    }


def _tell_of_absence(reason: str) -> None:
    logging.getLogger("wan_vae").warning(f"{reason}, so this library is measured alone.")
