"""The measurements of a benchmark, each asked of the workers in turn."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from wan_vae.benchmark.accuracy import Accuracy, compare
from wan_vae.benchmark.implementations import OURS
from wan_vae.benchmark.job import Job
from wan_vae.benchmark.layers import Spent
from wan_vae.benchmark.memory import Peak
from wan_vae.benchmark.work import Work
from wan_vae.benchmark.worker import Worker


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
