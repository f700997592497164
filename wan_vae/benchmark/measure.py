"""What a benchmark ran on.

How long a call takes, until its device has done all of it.

What a call adds, at most, to the memory that was held when it began.

What a machine can do at best: multiply matrices, and copy memory.

Where the time of a call goes, layer by layer.

Where the time of a call goes, by PyTorch's operations.

How much there is to compute: what an implementation's convolutions and matrix products multiply, read and write.
"""

import ctypes
import gc
import os
import platform
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from wan_vae.ops.workspace import empty_cache

Result = TypeVar("Result")


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Return what a call returns, and the seconds it took."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, time.perf_counter() - start


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


_ENOUGH_CALLS = 4
_ENOUGH_SECONDS = 2.0
_SIDES = {"cpu": (512, 2048), "cuda": (4096, 8192)}
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOP/s of the fastest product of two square matrices.

    In float32 on CUDA, TF32 is used where convolutions may use it, which by default they may.
    """
    convolutions_round = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if convolutions_round else "highest")
    try:
        best = 0.0
        for side in _SIDES.get(device.type, _SIDES["cpu"]):
            flops = 2 * side**3
            if best and flops / best > _ENOUGH_SECONDS:
                break  # this dtype is so slow here that a larger product is no faster
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            best = max(best, flops / _least_seconds(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    finally:
        torch.set_float32_matmul_precision(precision)
    return best


def copy_ceiling(device: torch.device) -> float:
    """Return the bytes read and written a second, added up, by the fastest copy of a large tensor."""
    count = _COPIED_BYTES.get(device.type, _COPIED_BYTES["cpu"])
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * count / _least_seconds(lambda: target.copy_(source), device)


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    timed(call, device)
    end = time.perf_counter() + _ENOUGH_SECONDS
    least = timed(call, device)[1]
    for _ in range(_ENOUGH_CALLS - 1):
        if time.perf_counter() > end:
            break
        least = min(least, timed(call, device)[1])
    return least


OUTSIDE = "(outside all layers)"


@dataclass(frozen=True)
class Spent:
    """Time that went to one kind of thing.

    Attributes:
        name: What.
        seconds: In that alone, not in what it called.
        calls: How often it was called.
    """

    name: str
    seconds: float
    calls: int


def time_by_layer(network: nn.Module, call: Callable[[], object], device: torch.device) -> list[Spent]:
    """Run a call and return the time spent in each layer of a network, most first.

    Layers are named by their path. Blocks in a row count as one, `*` for their number, and a module that calls others
    counts for what it does itself. The device is waited for before and after each layer, so that the whole takes longer
    than it does otherwise.
    """
    clock = _LayerClock(device)
    handles = [
        handle
        for path, module in network.named_modules()
        if path
        for handle in (
            module.register_forward_pre_hook(clock.entering(_shortened(path))),
            module.register_forward_hook(clock.leaving),
        )
    ]
    try:
        _, total = timed(call, device)
    finally:
        for handle in handles:
            handle.remove()
    spent = [Spent(name, clock.seconds[name], clock.calls[name]) for name in clock.seconds]
    outside = Spent(OUTSIDE, total - sum(each.seconds for each in spent), 1)
    return sorted([*spent, outside], key=lambda each: -each.seconds)


def _shortened(path: str) -> str:
    return re.sub(r"\b(blocks|norms|convs)\.\d+", r"\1.*", path)


@dataclass
class _Visit:
    name: str
    start: float
    in_others: float = 0.0


class _LayerClock:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._under_way: list[_Visit] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def entering(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._under_way.append(_Visit(name, self._now()))

        return enter

    def leaving(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        now = self._now()
        visit = self._under_way.pop()
        self.seconds[visit.name] += now - visit.start - visit.in_others
        self.calls[visit.name] += 1
        if self._under_way:
            self._under_way[-1].in_others += now - visit.start


def time_by_operation(call: Callable[[], object], device: torch.device) -> list[Spent]:
    """Run a call and return the time spent in each operation (on CUDA, in each kernel), most first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks to itself on standard error
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        timed(call, device)
    # On CUDA, an operation is charged with the time of its kernels, which are listed, too.
    events = [event for event in profiler.key_averages() if not on_cuda or event.device_type.name == "CUDA"]
    spent = [
        Spent(event.key, (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6, event.count)
        for event in events
    ]
    return sorted((each for each in spent if each.seconds > 0), key=lambda each: -each.seconds)


@dataclass(frozen=True)
class Work:
    """What one call computes.

    Attributes:
        flops: Multiplications and additions of convolutions and matrix products (a multiply-add is two), with the zeros
            that are laid around their inputs. Norms, activations and copies are not counted.
        values: Numbers that those read and write, each tensor once a call of theirs: weights, inputs, outputs. Even if
            all else were fused into them, that much would pass through memory or caches.
    """

    flops: int
    values: int


def work_of(call: Callable[[], object]) -> Work:
    """Count what a call computes.

    On tensors of the meta device, the call goes through the same layers as a real one and computes nothing. Where a
    layer has a faster way on some device, by fewer operations even, what is counted is the plain way.
    """
    with _ValueCounter() as values, FlopCounterMode(display=False) as flops:
        call()
    return Work(flops.get_total_flops(), values.total)


class _ValueCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += sum(value.numel() for value in (*args, result) if isinstance(value, Tensor))
        return result


# Those that decide which kernels convolutions get.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "asimd", "bf16")


def describe_machine(device: str, processor: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return a device's name and what its processor can do, as JSON types.

    Args:
        device: Its type.
        processor: Linux's description of the CPU.
    """
    text = processor.read_text(encoding="utf-8") if processor.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    cpu = model[1].strip() if model else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in present],
    }
