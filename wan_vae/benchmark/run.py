"""A benchmark from start to end: measure all implementations in alternation; return the result as JSON types."""

import logging
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

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
from wan_vae.benchmark.worker import OUTPUT, Target, Worker
from wan_vae.errors import UserError

Record = dict[str, Any]
BASELINE_DTYPE = "fp32"


class Case(NamedTuple):
    """One kind of call that is measured."""

    direction: str
    dtype: str
    implementation: str

    def __str__(self) -> str:
        return f"{self.implementation} {self.direction} {self.dtype}"


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
        folder, device = Path(name), torch.device(config.device)
        vae, origin = load_weights(config)
        architecture, alone = vae.config, unsupported_reason(vae.config)
        weights = folder / ("weights.safetensors" if alone else "weights")
        vae.save(weights, layout="wan" if alone else "diffusers")
        del vae  # frees its memory for the workers
        shapes = write_inputs(config, architecture, folder / "inputs.safetensors")
        workers = {
            name: running.enter_context(closing(Worker(name))) for name in (WAN_VAE, *([] if alone else [DIFFUSERS]))
        }
        if not alone and (alone := workers[DIFFUSERS].call(import_error, DIFFUSERS)):
            del workers[DIFFUSERS]
        if alone:
            logging.getLogger("wan_vae").warning(f"{alone}, so this library is measured without it.")
        if any(openvino_computes(dtype, config.device) for dtype in config.dtypes):
            workers[OPENVINO] = running.enter_context(closing(Worker(OPENVINO)))
        ours, names = workers[WAN_VAE], tuple(workers)
        targets = {name: Target(name, architecture, weights, folder / "inputs.safetensors", device) for name in names}
        if config.threads is not None:
            for worker in workers.values():
                worker.call(torch.set_num_threads, config.threads)

        computed = [
            (dtype, name)
            for dtype, name in product(config.dtypes, names)
            if name != OPENVINO or openvino_computes(dtype, config.device)
        ]
        cases = [Case(direction, *each) for direction, each in product(config.directions, computed)]
        calls = list(product(config.directions, config.dtypes))

        def each_case(activity: str = "") -> Iterator[tuple[Case, Worker]]:
            for case in tuple(cases):
                if case in cases:
                    progress(f"{activity}{case}")
                    yield case, workers[case.implementation]

        @contextmanager
        def dispensable(name: str) -> Iterator[None]:
            """Go on without OpenVINO where it fails: it takes several times the memory of the others."""
            try:
                yield
            except (UserError, MemoryError, RuntimeError) as error:
                if name != OPENVINO:
                    raise
                logging.getLogger("wan_vae").warning(f"{str(error).rstrip('.')}; OpenVINO is left out.")
                cases[:] = [other for other in cases if other.implementation != OPENVINO]
                workers.pop(OPENVINO).close()

        def output(case: Case) -> Path:
            return folder / f"{'-'.join(case)}.safetensors"

        work = {
            case: worker.call(tasks.call_work, targets[case.implementation], case.direction, case.dtype)
            for case, worker in each_case("counting operations of ")
        }
        progress("matrix products")
        matmul = {dtype: ours.call(matmul_ceiling, TORCH_DTYPES[dtype], device) for dtype in config.dtypes}
        progress("copies")
        copy = ours.call(copy_ceiling, device)
        for dtype, name in computed:
            progress(f"loading {name} {dtype}")
            with dispensable(name):
                if name in workers:
                    workers[name].call(tasks.prepare, targets[name], dtype)
        for direction, dtype in calls if config.tune else ():
            progress(f"choosing kernels for {direction} {dtype}")
            ours.call(tasks.autotune, direction, dtype)

        measured: defaultdict[Case, list[PeakMemory]] = defaultdict(list)
        for _ in range(config.warmup + 1):
            for case, worker in each_case():
                path = output(case) if config.errors else None
                with dispensable(case.implementation):
                    measured[case].append(worker.call(tasks.call_memory, case.direction, case.dtype, path))
        # The first call is left out if there are others, because code that runs for the first time takes memory too.
        peaks = {case: found[1:] or found for case, found in measured.items()}
        timed: defaultdict[Case, list[float]] = defaultdict(list)
        for _ in range(config.runs):
            for case, worker in each_case():
                with dispensable(case.implementation):
                    timed[case].append(worker.call(tasks.call_seconds, case.direction, case.dtype))
        seconds = {case: timed[case] for case in cases}

        profiles = []
        for direction, dtype in calls if config.profile else ():
            progress(f"profile of {direction} {dtype}")
            profiles.append({"direction": direction, "dtype": dtype, **ours.call(tasks.call_profile, direction, dtype)})
        reference, errors = DIFFUSERS if DIFFUSERS in names else WAN_VAE, []
        for direction in config.directions if config.errors else ():
            progress(f"{reference} {direction} in float64")
            exact = folder / f"{direction}.safetensors"
            workers[reference].call(tasks.write_exact_output, targets[reference], direction, exact)
            errors += [
                {**case._asdict(), **frame_errors(output(case), exact)} for case in cases if case.direction == direction
            ]
        threads = ours.call(torch.get_num_threads)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wan_vae": code_version(),
        "torch": torch.__version__,
        **{peer: version(peer) if peer in workers else None for peer in PEERS},
        "machine": {**describe_machine(config.device), "threads": threads},
        "model": {
            "name": config.preset if config.checkpoint is None else Path(config.checkpoint).name,
            "weights": origin,
            "config": architecture.to_dict(),
        },
        "clip": {"frames": config.frames, "width": config.width, "height": config.height, **shapes},
        "warmup": config.warmup,
        "runs": config.runs,
        "ceilings": {"matmul_flops_per_second": matmul, "copy_bytes_per_second": copy},
        "results": results(seconds, peaks, work, matmul, copy),
        "ratios": ratios(seconds),
        "errors": {"reference": f"{reference} in float64", "outputs": errors} if config.errors else None,
        "profiles": profiles if config.profile else None,
    }


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
