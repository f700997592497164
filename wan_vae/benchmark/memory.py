"""What a call adds, at most, to the memory that was held when it began."""

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from wan_vae.benchmark.clock import synchronize
from wan_vae.ops.spare_memory import empty_cache

Result = TypeVar("Result")
_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Peak:
    """The most that a call added, in bytes; None where it cannot be measured.

    Attributes:
        held: On a CPU, memory of the process; on CUDA, of tensors.
        reserved: On CUDA, what PyTorch took from the device for that, with the gaps between tensors.
    """

    held: int | None
    reserved: int | None = None


def peak_of(call: Callable[[], Result], device: torch.device) -> tuple[Result, Peak]:
    """Return what a call returns, and what it added at most to the memory held before, its result included.

    Freed memory that allocators keep is given back first, for a call that reuses it would seem to need none. On a CPU,
    glibc's gaps between tensors count; they differ from call to call, at small sizes by a tenth or two of the whole.
    """
    gc.collect()
    if device.type == "cuda":
        return _peak_on_cuda(call, device)
    _give_back_freed_memory()
    if device.type != "cpu" or not _reset_peak():
        return call(), Peak(None)
    start = _status("VmRSS")
    result = call()
    return result, Peak(max(0, _status("VmHWM") - start))


def _peak_on_cuda(call: Callable[[], Result], device: torch.device) -> tuple[Result, Peak]:
    synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = call()
    synchronize(device)
    return result, Peak(torch.cuda.max_memory_allocated(device) - start, torch.cuda.max_memory_reserved(device) - start)


def _give_back_freed_memory() -> None:
    empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # other C libraries than glibc have none
            trim(0)


def _reset_peak() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not Linux, or not permitted
        return False
    return True


def _status(name: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no {name}")
