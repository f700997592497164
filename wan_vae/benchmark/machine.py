"""What a benchmark ran on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

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
