"""What a machine can do at best: multiply matrices, and copy memory."""

import time
from collections.abc import Callable

import torch

from wan_vae.benchmark.clock import timed

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
