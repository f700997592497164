"""Budgets of memory: parsing, formatting, and what a device has left."""

import re
import sys
from pathlib import Path

import numpy as np
import torch

from wan_vae.arguments import shown
from wan_vae.errors import UserError
from wan_vae.ops.cuda_graph import captured_bytes

Budget = int | str
"""Bytes, a number with a unit such as "4GiB", or "auto" for four fifths of what the device has left.

K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024; with or without a B, capital or not.
"""

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The rest is for other programs, and for gaps of allocators.
SHARE_OF_FREE = 0.8
_MEMINFO = Path("/proc/meminfo")
# Control groups, versions 2 and 1: the limit, the usage, and the part of it that the system reclaims on demand, such as
# the page cache and the workspaces' cached regions.
_LIMITS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def parse_bytes(budget: Budget, device: torch.device) -> int:
    """Return a budget in bytes.

    Args:
        budget: Bytes, or text: a number with a unit, "auto" for four fifths of what is free on `device`.
        device: Where the memory is.

    Raises:
        UserError: It is none of these, or "auto" on a device that does not tell.
    """
    if isinstance(budget, str) and budget == "auto":
        return int(SHARE_OF_FREE * free_memory(device))
    if isinstance(budget, str):
        parsed = parse_size(budget)
        if parsed is None:
            raise UserError(f"The memory is {shown(budget)}; write bytes, a number with a unit such as 4GiB, or auto.")
        size = parsed
    else:
        given: object = budget
        size = int(given) if isinstance(given, int | np.integer) and not isinstance(given, bool) else 0
    if not 0 < size < 2**63:
        raise UserError(
            f"The memory is {shown(budget)}; it must be bytes, a whole number from 1 to 2**63 - 1, a number with a unit"
            " such as 4GiB, or auto."
        )
    return size


def parse_size(text: str) -> int | None:
    """Return a number of bytes with or without a unit, such as 4GiB, 1.5G or 300; None if it is none."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT]?)|([KMGT])i)B?", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    return int(float(match[1]) * (_BINARY_UNITS[match[3].upper()] if match[3] else _UNITS[match[2].upper()]))


def reports_free_memory(device: torch.device) -> bool:
    """Whether the memory that a device has left can be found out."""
    return device.type == "cuda" or (device.type == "cpu" and _MEMINFO.exists())


def format_bytes(size: int) -> str:
    """Return a number of bytes with a unit, in the form that `parse_bytes` reads."""
    for unit in ("G", "M", "K"):
        if size >= _BINARY_UNITS[unit]:
            value = size / _BINARY_UNITS[unit]
            return f"{value:.2f}{unit}iB" if value < 10 else f"{value:.1f}{unit}iB"
    return f"{size}B"


def peak_memory() -> int | None:
    """Most bytes held so far: allocated on CUDA if it is used, else resident; None where the system does not tell."""
    if torch.cuda.is_available() and (allocated := torch.cuda.max_memory_allocated()):
        return allocated
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def free_memory(device: torch.device) -> int:
    """Return the bytes that a device has left.

    Raises:
        UserError: The device does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that PyTorch reserved and does not use is free, too, except for that of graphs.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + max(0, unused - captured_bytes(device))
    if not reports_free_memory(device):
        raise UserError(
            f"The memory is 'auto', but {sys.platform} does not tell how much {device.type} has left; write it, such as"
            " 4GiB."
        )
    available = re.search(r"^MemAvailable:\s*(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    if available is None:  # kernels before 3.14
        raise UserError(f"The memory is 'auto', but {_MEMINFO} does not tell how much is left; write it, such as 4GiB.")
    return min([1024 * int(available[1]), *_left_to_this_group()])


def _left_to_this_group() -> list[int]:
    left = []
    for folder, limit, usage, on_demand in _LIMITS:
        try:
            used = int((folder / usage).read_text())
            found = re.search(rf"^{on_demand} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            left.append(max(0, int((folder / limit).read_text()) - used + (int(found[1]) if found else 0)))
        except (OSError, ValueError):  # no such file, or no limit
            continue
    return left
