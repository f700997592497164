"""Autotuning: the fastest of several implementations is measured once per shape and device, then read from a file.

The choices are stored in `wan_vae/kernels.json` in the user's cache folder. The file is optional: what cannot be read
is measured again, and what cannot be written is measured in every process.
"""

import json
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wan_vae.errors import first_line
from wan_vae.ops.cuda_graph import drop_idle
from wan_vae.ops.precision import tf32_allowed

_ROUNDS = 5
# A shorter round would measure launching rather than computing.
_SECONDS_PER_ROUND = 0.01
_MAX_CALLS_PER_ROUND = 20
# Of the largest value: of 27 * 1024 products, the most that a convolution of Wan's sums, and of operands with 10 bits.
_SUMMING_ERROR = 3e-9 * 27 * 1024
_TF32_ERROR = 1e-2
_logger = logging.getLogger("wan_vae")
_may_measure = ContextVar("may_measure", default=False)


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/wan_vae` or `~/.cache/wan_vae`; for users without a home, a path that cannot exist."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wan_vae"
    except RuntimeError:  # no home, as in some containers
        return Path(os.devnull) / "wan_vae"


@contextmanager
def measuring() -> Iterator[None]:
    """Let `run_fastest` measure unknown keys inside this context. Measuring takes seconds per key, so it is opt-in."""
    token = _may_measure.set(True)
    try:
        yield
    finally:
        _may_measure.reset(token)
        drop_idle()  # they hold the kernels of before


def run_fastest(key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> Tensor:
    """Return the result of the fastest candidate, or of the first one if they were never measured.

    A candidate that fails is not used again: the first one takes its place, and a warning is logged.

    Inside `measuring`, the first call with a key runs all candidates several times, which takes seconds where kernels
    must be compiled, and shows a progress bar in a terminal. Nothing is measured while a CUDA graph is captured.

    Args:
        key: The operation and its operands, as from `describe`. Other candidates count as another key.
        candidates: Implementations by name, each without side effects. Those that raise an error, or whose result
            differs from the first one's by more than rounding, are ignored.
        device: The device they run on.

    Raises:
        Exception: All candidates failed, or the first one did; the error is that of the first.
        torch.cuda.OutOfMemoryError: The device's memory is full.
    """
    return _tuning_cache().run(key, candidates, device)


def is_tunable(key: str) -> bool:
    """Whether `run_fastest` could use another candidate than the first: one is known to be faster, or will be measured.

    Otherwise what the other candidates need, such as weights in another order, need not be prepared.
    """
    return _may_measure.get() or _tuning_cache().knows_faster(key)


def describe(operation: str, device: torch.device, *tensors: Tensor | None, **options: object) -> str:
    """Return a key for `run_fastest`: the operation, shapes and dtypes, options, the device, versions of libraries."""
    operands = [
        "none" if x is None else f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}" for x in tensors
    ]
    named = [f"{name} {value}" for name, value in options.items()]
    if device.type != "cuda":
        return ", ".join([operation, *operands, *named, device.type, f"torch {torch.__version__}"])
    return ", ".join([operation, *operands, *named, torch.cuda.get_device_name(device), *_cuda_versions()])


@cache
def _cuda_versions() -> tuple[str, ...]:
    """Return what may change which kernel is the fastest, or whether it runs."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"torch {torch.__version__}", f"cuDNN {cudnn}", f"Triton {triton}", f"driver for CUDA {driver}"


class TuningCache:
    """The fastest candidate of every measured key, in memory and in a JSON file.

    Args:
        path: The file. Neither it nor its folder need exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] | None = None
        self._warned = False
        # Held during measurements: two at the same time would disturb each other.
        self._lock = threading.RLock()

    def run(self, key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> Tensor:
        """See the function `run_fastest`."""
        name, first = self.fastest(key, candidates, device), next(iter(candidates))
        try:
            return candidates[name]()
        except torch.cuda.OutOfMemoryError:
            raise
        # Compilers, drivers and libraries raise errors of many classes; the first candidate computes the same.
        except Exception as error:
            if name == first:
                raise
            result = candidates[first]()  # where this fails, too, the fault is not the candidate's
            _logger.warning(f"{name} fails for {key}, so {first} computes it from now on: {first_line(error)}")
            with self._lock:
                entry = self._entry(key, candidates)
                self._entries()[entry] = first
                if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
                    self._write({entry: first})
            return result

    def fastest(self, key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> str:
        """Return the name of the candidate that `run` uses."""
        names = list(candidates)
        if len(names) == 1:
            return names[0]
        entry = self._entry(key, candidates)
        with self._lock:
            known = self._entries()
            if known.get(entry) not in candidates:
                if not _may_measure.get() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
                    return names[0]
                known[entry], is_repeatable = _measure(key, candidates, device)
                if is_repeatable:
                    self._write({entry: known[entry]})
            return known[entry]

    def knows_faster(self, key: str) -> bool:
        """Whether another candidate than the first was the fastest for a key."""
        with self._lock:
            return any(
                entry.startswith(f"{key}: ") and not entry.startswith(f"{key}: {name} or ")
                for entry, name in self._entries().items()
            )

    @staticmethod
    def _entry(key: str, candidates: Mapping[str, object]) -> str:
        return f"{key}: {' or '.join(candidates)}"

    def _entries(self) -> dict[str, str]:
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._warn(f"{self._path} cannot be read ({error}); the fastest kernels are measured again.")
            return {}
        if not isinstance(known, dict) or not all(isinstance(name, str) for name in known.values()):
            self._warn(f"{self._path} is damaged; the fastest kernels are measured again.")
            return {}
        return known

    def _write(self, new: dict[str, str]) -> None:
        try:
            # Compiled kernels are loaded from this folder only if no other user can write to it.
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Other processes may have added entries.
            content = json.dumps(self._read() | new, indent=1, sort_keys=True)
            with tempfile.TemporaryDirectory(dir=self._path.parent) as folder:
                file = Path(folder, "kernels.json")
                file.write_text(content, encoding="utf-8")
                file.replace(self._path)
        except OSError as error:
            self._warn(f"{self._path} cannot be written ({error}); the fastest kernels are measured in every process.")

    def _warn(self, message: str) -> None:
        if not self._warned:
            _logger.warning(message)
        self._warned = True


@cache
def _tuning_cache() -> TuningCache:
    return TuningCache(cache_folder() / "kernels.json")


def _measure(key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> tuple[str, bool]:
    """Return the name of the fastest candidate, and whether another process would find the same one."""
    _logger.info(f"measuring {', '.join(candidates)} for {key}")
    is_repeatable = True
    errors: list[Exception] = []
    calls: dict[str, int] = {}
    expected: Tensor | None = None
    with tqdm(total=len(candidates) + _ROUNDS, desc="choosing the fastest kernel", disable=None, leave=False) as bar:
        for name, compute in candidates.items():
            try:
                result = compute()  # the first run compiles
                expected = result.clone() if expected is None else expected
                if not _agree(result, expected):
                    raise ArithmeticError(f"its result is not that of {next(iter(calls))}")
                seconds = _seconds(compute, 1, device)
                calls[name] = max(1, min(_MAX_CALLS_PER_ROUND, int(_SECONDS_PER_ROUND / max(seconds, 1e-9))))
            # Compilers and libraries raise errors of many classes, for unsupported devices and for bugs; the other
            # candidates compute the same.
            except Exception as error:
                _logger.info(f"{name} cannot be used: {error}")
                errors.append(error)
                is_repeatable = is_repeatable and not isinstance(error, torch.cuda.OutOfMemoryError)
            bar.update()
        if not calls:
            raise errors[0]
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_ROUNDS if len(calls) > 1 else 0):
            # Interleaved, so that other work on the device slows all of them.
            for name, count in calls.items():
                times[name].append(_seconds(candidates[name], count, device) / count)
            bar.update()
    if len(calls) == 1:
        return next(iter(calls)), is_repeatable
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min(medians, key=lambda name: medians[name])
    described = ", ".join(f"{name}: {1000 * seconds:.3f} ms" for name, seconds in medians.items())
    _logger.info(f"{best} is the fastest of {described}")
    return best, is_repeatable


def _seconds(compute: Callable[[], Tensor], count: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            compute()
        return time.perf_counter() - start
    make_event: Any = torch.cuda.Event  # untyped in some releases
    with torch.cuda.device(device):
        begin, end = make_event(enable_timing=True), make_event(enable_timing=True)
        begin.record()
        for _ in range(count):
            compute()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1000


def _agree(result: Tensor, expected: Tensor) -> bool:
    """Whether results differ by rounding alone: on the whole, and in every value."""
    if not result.is_floating_point() or result.shape != expected.shape:
        return False
    # Operands of float32 may be rounded to TF32 where that is allowed, by cuDNN alone.
    rounded = result.dtype == torch.float32 and tf32_allowed()
    mean = {torch.float64: 1e-10, torch.float32: 3e-3 if rounded else 3e-4}.get(result.dtype, 2e-2)
    # Results are rounded once or twice. Sums on tensor cores are wrong by 3e-9 of the largest value per product.
    most = 4 * torch.finfo(result.dtype).eps + (_SUMMING_ERROR if result.dtype != torch.float64 else 0.0)
    most += _TF32_ERROR if rounded else 0.0
    wide = expected.to(torch.promote_types(result.dtype, torch.float32))
    difference = result.to(wide.dtype) - wide
    close = difference.square().mean().sqrt() <= mean * wide.square().mean().sqrt().clamp_min(1e-30)
    return bool(close) and bool(difference.abs().amax() <= most * wide.abs().amax())
