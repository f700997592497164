"""A benchmark from start to end: measure all implementations in alternation; return the result as JSON types."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from wan_vae.benchmark import BenchmarkConfig
from wan_vae.benchmark import worker as tasks
from wan_vae.benchmark.implementations import (
    DIFFUSERS,
    OPENVINO,
    PEERS,
    TORCH_DTYPES,
    WAN_VAE,
    import_error,
    openvino_computes,
    unsupported_reason,
)
from wan_vae.benchmark.inputs import load_weights, write_inputs
from wan_vae.benchmark.measure import PeakMemory, Work, copy_ceiling, describe_machine, matmul_ceiling
from wan_vae.benchmark.record import Case, Record, code_version, frame_errors, ratios, results
from wan_vae.benchmark.worker import Target, Worker
from wan_vae.errors import UserError


def run_benchmark(config: BenchmarkConfig, progress: Callable[[str], None]) -> Record:
    """Measure, and return the record as JSON types.

    All cases are called for warm-up, peak memory and output. Timed rounds follow; each calls every case once, so that
    the runs of a ratio are close in time.

    `progress` is called with a description before each step.

    Raises:
        UserError: The model does not exist, the clip does not fit it, or an implementation does not support a dtype.
    """
    progress("weights and inputs")
    with TemporaryDirectory(prefix="wan-vae-benchmark-") as name, ExitStack() as running:
        session = _Session(config, Path(name), running, progress)
        work = session.count_operations()
        matmul, copy = session.measure_ceilings()
        session.load_models()
        peaks = session.warm_up()
        seconds = session.measure_times()
        profiles = session.profile()
        reference, errors = session.compare_outputs()
        workers, threads = session.workers, session.workers[WAN_VAE].call(torch.get_num_threads)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wan_vae": code_version(),
        "torch": torch.__version__,
        **{peer: version(peer) if peer in workers else None for peer in PEERS},
        "machine": {**describe_machine(config.device), "threads": threads},
        "model": {
            "name": config.preset if config.checkpoint is None else Path(config.checkpoint).name,
            "weights": session.origin,
            "config": session.architecture.to_dict(),
        },
        "clip": {"frames": config.frames, "width": config.width, "height": config.height, **session.shapes},
        "warmup": config.warmup,
        "runs": config.runs,
        "ceilings": {"matmul_flops_per_second": matmul, "copy_bytes_per_second": copy},
        "results": results(seconds, peaks, work, matmul, copy),
        "ratios": ratios(seconds),
        "errors": {"reference": f"{reference} in float64", "outputs": errors} if config.errors else None,
        "profiles": profiles if config.profile else None,
    }


class _Session:
    """The processes of a benchmark, one for each implementation, and what is called in them.

    Args:
        config: What is measured.
        folder: Holds weights, inputs and outputs; it must exist.
        running: Ends the processes.
        progress: Called with a description before each step.

    Attributes:
        architecture: The model's.
        origin: Where its weights are from.
        shapes: Of the inputs, by name.
        workers: The processes, by implementation.
        cases: What is measured; without OpenVINO once it failed.
    """

    def __init__(
        self, config: BenchmarkConfig, folder: Path, running: ExitStack, progress: Callable[[str], None]
    ) -> None:
        self._config, self._folder, self._progress = config, folder, progress
        self._device = torch.device(config.device)
        vae, self.origin = load_weights(config)
        self.architecture, alone = vae.config, unsupported_reason(vae.config)
        weights, inputs = folder / ("weights.safetensors" if alone else "weights"), folder / "inputs.safetensors"
        vae.save(weights, layout="wan" if alone else "diffusers")
        del vae  # frees its memory for the workers
        self.shapes = write_inputs(config, self.architecture, inputs)
        self.workers = {
            name: running.enter_context(closing(Worker(name))) for name in (WAN_VAE, *([] if alone else [DIFFUSERS]))
        }
        if not alone and (alone := self.workers[DIFFUSERS].call(import_error, DIFFUSERS)):
            del self.workers[DIFFUSERS]
        if alone:
            logging.getLogger("wan_vae").warning(f"{alone}, so this library is measured without it.")
        if any(openvino_computes(dtype, config.device) for dtype in config.dtypes):
            self.workers[OPENVINO] = running.enter_context(closing(Worker(OPENVINO)))
        if config.threads is not None:
            for worker in self.workers.values():
                worker.call(torch.set_num_threads, config.threads)
        self._targets = {name: Target(name, self.architecture, weights, inputs, self._device) for name in self.workers}
        self._computed = [
            (dtype, name)
            for dtype, name in product(config.dtypes, self.workers)
            if name != OPENVINO or openvino_computes(dtype, config.device)
        ]
        self.cases = [Case(direction, *each) for direction, each in product(config.directions, self._computed)]

    def count_operations(self) -> dict[Case, Work]:
        """Return the operations and the least memory traffic of each case."""
        return {
            case: worker.call(tasks.call_work, self._targets[case.implementation], case.direction, case.dtype)
            for case, worker in self._each_case("counting operations of ")
        }

    def measure_ceilings(self) -> tuple[dict[str, float], float]:
        """Return the FLOP/s of matrix products by dtype, and the bytes per second of copies."""
        ours = self.workers[WAN_VAE]
        self._progress("matrix products")
        dtypes = self._config.dtypes
        matmul = {dtype: ours.call(matmul_ceiling, TORCH_DTYPES[dtype], self._device) for dtype in dtypes}
        self._progress("copies")
        return matmul, ours.call(copy_ceiling, self._device)

    def load_models(self) -> None:
        """Load all models, and choose the kernels of this library's if the config says so."""
        for dtype, name in self._computed:
            self._progress(f"loading {name} {dtype}")
            with self._dispensable(name):
                if name in self.workers:
                    self.workers[name].call(tasks.prepare, self._targets[name], dtype)
        for direction, dtype in self._calls() if self._config.tune else ():
            self._progress(f"choosing kernels for {direction} {dtype}")
            self.workers[WAN_VAE].call(tasks.autotune, direction, dtype)

    def warm_up(self) -> dict[Case, list[PeakMemory]]:
        """Call all cases, write their outputs, and return the memory that they took."""
        measured: defaultdict[Case, list[PeakMemory]] = defaultdict(list)
        for _ in range(self._config.warmup + 1):
            for case, worker in self._each_case():
                path = self._output(case) if self._config.errors else None
                with self._dispensable(case.implementation):
                    measured[case].append(worker.call(tasks.call_memory, case.direction, case.dtype, path))
        # The first call is left out if there are others, because code that runs for the first time takes memory too.
        return {case: found[1:] or found for case, found in measured.items()}

    def measure_times(self) -> dict[Case, list[float]]:
        """Return the seconds of each case in each round."""
        timed: defaultdict[Case, list[float]] = defaultdict(list)
        for _ in range(self._config.runs):
            for case, worker in self._each_case():
                with self._dispensable(case.implementation):
                    timed[case].append(worker.call(tasks.call_seconds, case.direction, case.dtype))
        return {case: timed[case] for case in self.cases}

    def profile(self) -> list[Record]:
        """Return where this library spends its time, if the config says so."""
        found = []
        for direction, dtype in self._calls() if self._config.profile else ():
            self._progress(f"profile of {direction} {dtype}")
            profile = self.workers[WAN_VAE].call(tasks.call_profile, direction, dtype)
            found.append({"direction": direction, "dtype": dtype, **profile})
        return found

    def compare_outputs(self) -> tuple[str, list[Record]]:
        """Return which implementation is the reference in float64, and the errors of all outputs against it."""
        reference, errors = DIFFUSERS if DIFFUSERS in self.workers else WAN_VAE, []
        for direction in self._config.directions if self._config.errors else ():
            self._progress(f"{reference} {direction} in float64")
            exact = self._folder / f"{direction}.safetensors"
            self.workers[reference].call(tasks.write_exact_output, self._targets[reference], direction, exact)
            errors += [
                {**case._asdict(), **frame_errors(self._output(case), exact)}
                for case in self.cases
                if case.direction == direction
            ]
        return reference, errors

    def _calls(self) -> Iterator[tuple[str, str]]:
        return product(self._config.directions, self._config.dtypes)

    def _each_case(self, activity: str = "") -> Iterator[tuple[Case, Worker]]:
        for case in tuple(self.cases):
            if case in self.cases:
                self._progress(f"{activity}{case}")
                yield case, self.workers[case.implementation]

    def _output(self, case: Case) -> Path:
        return self._folder / f"{'-'.join(case)}.safetensors"

    @contextmanager
    def _dispensable(self, name: str) -> Iterator[None]:
        """Go on without OpenVINO where it fails: it takes several times the memory of the others."""
        try:
            yield
        except (UserError, MemoryError, RuntimeError) as error:
            if name != OPENVINO:
                raise
            logging.getLogger("wan_vae").warning(f"{str(error).rstrip('.')}; OpenVINO is left out.")
            self.cases = [other for other in self.cases if other.implementation != OPENVINO]
            self.workers.pop(OPENVINO).close()
