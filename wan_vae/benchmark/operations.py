"""Where the time of a call goes, by PyTorch's operations."""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from wan_vae.benchmark.clock import timed
from wan_vae.benchmark.layers import Spent


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
