"""Measurements of one call: time, peak memory, arithmetic, time by layer and operation. Limits of the machine."""

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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from wan_vae.ops.workspace import empty_cache

Result = TypeVar("Result")

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"
_ENOUGH_CALLS = 4
_ENOUGH_SECONDS = 2.0
_SIDES = {"cpu": (512, 2048), "cuda": (4096, 8192)}
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31}
OUTSIDE = "(outside all layers)"
# CPU features that decide which convolution kernels are used.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16", "asimd", "bf16")


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all work submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Return a call's result and its duration in seconds, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, time.perf_counter() - start


@dataclass(frozen=True)
class PeakMemory:
    """Largest memory that a call added, in bytes; None where it cannot be measured."""

    used: int | None  # on a CPU, resident memory of the process; on CUDA, memory of tensors
    reserved: int | None = None  # on CUDA, memory taken by PyTorch's allocator, with the gaps between tensors


def measure_memory(call: Callable[[], Result], device: torch.device) -> tuple[Result, PeakMemory]:
    """Return a call's result and its peak memory above the memory in use before it; the result is included.

    Allocators release their caches first, because a call that reuses cached memory would appear to need none. On a CPU,
    fragmentation in glibc is included; it varies between calls, for small sizes by 10 to 20 % of the peak.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        result = call()
        synchronize(device)
        used, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return result, PeakMemory(used - start, reserved - start)
    empty_cache()
    if device.type != "cpu":
        return call(), PeakMemory(None)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # glibc only
            trim(0)
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not Linux, or not permitted
        return call(), PeakMemory(None)
    start = _process_memory("VmRSS")
    result = call()
    return result, PeakMemory(max(0, _process_memory("VmHWM") - start))


def _process_memory(field: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no {field}")


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Return the highest FLOP/s measured for products of two square matrices; in float32 without TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        best = 0.0
        for side in _SIDES.get(device.type, _SIDES["cpu"]):
            flops = 2 * side**3
            if best and flops / best > _ENOUGH_SECONDS:
                break  # emulated dtypes are so slow that a larger product gains nothing
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            best = max(best, flops / _least_seconds(partial(torch.matmul, a, b), device))
    finally:
        torch.set_float32_matmul_precision(precision)
    return best


def copy_ceiling(device: torch.device) -> float:
    """Return the bytes read plus the bytes written per second by the fastest copy of a large tensor."""
    count = _COPIED_BYTES.get(device.type, _COPIED_BYTES["cpu"])
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * count / _least_seconds(partial(target.copy_, source), device)


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    timed(call, device)
    end = time.perf_counter() + _ENOUGH_SECONDS
    least = timed(call, device)[1]
    for _ in range(_ENOUGH_CALLS - 1):
        if time.perf_counter() > end:
            break
        least = min(least, timed(call, device)[1])
    return least


@dataclass(frozen=True)
class ProfileEntry:
    """Time of one layer or operation."""

    name: str
    seconds: float  # without the layers or operations that it calls
    calls: int


def time_by_layer(network: nn.Module, call: Callable[[], object], device: torch.device) -> list[ProfileEntry]:
    """Return the time of a call in each layer of a network, longest first.

    The blocks of a level share one entry, with `*` for their index. The device is synchronized before and after each
    layer, which makes the whole call slower than usual.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    starts: list[float] = []
    in_children = [0.0]  # by nesting depth

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        synchronize(device)
        starts.append(time.perf_counter())
        in_children.append(0.0)

    def leave(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        synchronize(device)
        elapsed = time.perf_counter() - starts.pop()
        seconds[name] += elapsed - in_children.pop()
        calls[name] += 1
        in_children[-1] += elapsed

    handles = []
    for path, module in network.named_modules():
        if path:
            name = re.sub(r"\b(blocks|norms|convs)\.\d+", r"\1.*", path)
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(partial(leave, name))]
    try:
        _, total = timed(call, device)
    finally:
        for handle in handles:
            handle.remove()
    entries = [ProfileEntry(name, seconds[name], calls[name]) for name in seconds]
    entries.append(ProfileEntry(OUTSIDE, total - in_children[0], 1))
    return sorted(entries, key=lambda entry: -entry.seconds)


def time_by_operation(call: Callable[[], object], device: torch.device) -> list[ProfileEntry]:
    """Return the time of a call in each PyTorch operation, or on CUDA in each kernel, longest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs to standard error otherwise
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        timed(call, device)
    entries = [
        ProfileEntry(event.key, microseconds / 1e6, event.count)
        for event in profiler.key_averages()
        for microseconds in (event.self_device_time_total if on_cuda else event.self_cpu_time_total,)
        # On CUDA, operations are listed too, with the time of their kernels, which would count twice.
        if microseconds > 0 and (not on_cuda or event.device_type.name == "CUDA")
    ]
    return sorted(entries, key=lambda entry: -entry.seconds)


@dataclass(frozen=True)
class Work:
    """Arithmetic of convolutions and matrix products in one call, zero padding included."""

    flops: int  # multiplications plus additions
    elements: int  # of their weights, inputs and outputs, each once per operation: a lower bound of the memory traffic


def count_work(call: Callable[[], object]) -> Work:
    """Count the arithmetic of a call.

    On meta tensors, the call runs the same layers without computing. Fast paths of a device, some of which need fewer
    operations, are not taken there: the plain path is counted.
    """
    with _ElementCounter() as counter, FlopCounterMode(display=False) as flops:
        call()
    return Work(flops.get_total_flops(), counter.elements)


class _ElementCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.elements += sum(value.numel() for value in (*args, result) if isinstance(value, Tensor))
        return result


def describe_machine(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the names of a device, by its type, and of the CPU, its cores and instruction sets, as JSON types."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # also where ATEN_CPU_CAPABILITY says so
        present = {name for name in present if not name.startswith(("avx512", "amx"))}
    cpu = model[1].strip() if model else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in present],
    }
