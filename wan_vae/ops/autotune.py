"""Which of several ways to compute the same thing is the fastest here: measured once, then remembered on disk.

The choice is kept in `wan_vae/kernels.json` in the user's cache folder. Whatever becomes of that file, computations go
on: what cannot be read is measured again.

Where what was built or measured on this machine is kept.
"""

import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wan_vae.io.atomic_output import written_beside


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/wan_vae` or `~/.cache/wan_vae`; a folder that cannot be, where there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wan_vae"
    except RuntimeError:  # a user without a home, as containers have them
        return Path(os.devnull) / "wan_vae"


_ROUNDS = 5
# A round shorter than this says more about launching than about computing.
_SECONDS_A_ROUND = 0.01
_MOST_CALLS_A_ROUND = 20


_may_measure = ContextVar("may measure", default=False)


@contextmanager
def measuring() -> Iterator[None]:
    """Within this, `fastest` measures what it does not know yet. It takes seconds a shape, so somebody must ask."""
    token = _may_measure.set(True)
    try:
        yield
    finally:
        _may_measure.reset(token)


def fastest(key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> str:
    """Return the name of the candidate that was found to take the least time, or of the first if that is not known.

    Within `measuring`, the first call with a key runs all of them several times, which takes seconds where kernels are
    still to be compiled, and shows a progress bar in a terminal; except while a CUDA graph is captured.

    Args:
        key: What is computed and on what, as `describe` puts it. Other candidates count as another key.
        candidates: The ways to compute it, by name. Those that raise an error are left out, and so are those whose
            result is not the first one's up to rounding; each may be run often.
        device: Where they compute.

    Raises:
        Exception: All candidates failed; the error is that of the first.
    """
    return _selection().fastest(key, candidates, device)


def is_open(key: str) -> bool:
    """Whether `fastest` could name another candidate than the first: it was measured once, or would be now."""
    return _may_measure.get() or _selection().knows(key)


def describe(operation: str, device: torch.device, *tensors: Tensor | None, **options: object) -> str:
    """Return a key for `fastest`: the operation, its tensors' shapes and dtypes, its options, the device, PyTorch."""
    operands = ["none" if x is None else f"{_times(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in tensors]
    named = [f"{name} {value}" for name, value in options.items()]
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return ", ".join([operation, *operands, *named, processor, f"torch {torch.__version__}"])


class Selection:
    """Choices, in memory and in a file.

    Args:
        path: The file; it need not exist, and nor need its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] | None = None
        self._warned = False
        # Held while measuring too: two measurements at the same time would disturb each other.
        self._lock = threading.RLock()

    def fastest(self, key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> str:
        """As the function of this name."""
        names = list(candidates)
        if len(names) == 1:
            return names[0]
        entry = f"{key}: {' or '.join(names)}"
        with self._lock:
            if self._known is None:
                self._known = self._read()
            if self._known.get(entry) not in candidates:
                if not _may_measure.get() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
                    return names[0]
                name, is_lasting = _measure(key, candidates, device)
                self._known[entry] = name
                if is_lasting:
                    self._write({entry: name})
            return self._known[entry]

    def knows(self, key: str) -> bool:
        """Whether candidates were measured for a key."""
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return any(entry.startswith(f"{key}: ") for entry in self._known)

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
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # What other processes have found since is kept.
            known = self._read() | new
            with written_beside(self._path) as beside:
                beside.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        except OSError as error:
            self._warn(f"{self._path} cannot be written ({error}); the fastest kernels are measured in every process.")

    def _warn(self, message: str) -> None:
        if not self._warned:
            logging.getLogger("wan_vae").warning(message)
        self._warned = True


@cache
def _selection() -> Selection:
    return Selection(cache_folder() / "kernels.json")


def _measure(key: str, candidates: Mapping[str, Callable[[], Tensor]], device: torch.device) -> tuple[str, bool]:
    """Return the fastest candidate's name, and whether the next process would find the same one."""
    logger = logging.getLogger("wan_vae")
    logger.info(f"measuring {', '.join(candidates)} for {key}")
    is_lasting = True
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
                calls[name] = max(1, min(_MOST_CALLS_A_ROUND, int(_SECONDS_A_ROUND / max(seconds, 1e-9))))
            # Compilers and libraries have errors of their own for what they cannot do on a device, and for bugs; the
            # other candidates compute all the same.
            except Exception as error:
                logger.info(f"{name} cannot be used: {error}")
                errors.append(error)
                is_lasting = is_lasting and not isinstance(error, torch.cuda.OutOfMemoryError)
            bar.update()
        if not calls:
            raise errors[0]
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_ROUNDS if len(calls) > 1 else 0):
            # In turn, so that what else the device is doing slows all of them.
            for name, count in calls.items():
                times[name].append(_seconds(candidates[name], count, device) / count)
            bar.update()
    if len(calls) == 1:
        return next(iter(calls)), is_lasting
    medians = {name: statistics.median(own) for name, own in times.items()}
    best = min(medians, key=lambda name: medians[name])
    logger.info(f"{best} is the fastest of {_milliseconds(medians)}")
    return best, is_lasting


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
    # The widest tolerance is for cuDNN, which may round float32 to TF32.
    tolerance = {torch.float64: 1e-10, torch.float32: 3e-3}.get(result.dtype, 2e-2)
    wide = torch.promote_types(result.dtype, torch.float32)
    difference = (result.to(wide) - expected.to(wide)).square().mean().sqrt()
    return bool(difference <= tolerance * expected.to(wide).square().mean().sqrt().clamp_min(1e-30))


def _milliseconds(medians: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {1000 * seconds:.3f} ms" for name, seconds in medians.items())


def _times(sizes: Any) -> str:
    return "x".join(str(size) for size in sizes)
