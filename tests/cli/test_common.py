"""Helpers of the commands."""

import pytest
import torch

from wan_vae.cli.common import memory_shortage


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried a lot.\nSee the manual."),
            "CUDA out of memory. Tried a lot.",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "[enforce fail] DefaultCPUAllocator: can't allocate memory",
        ),
        (MemoryError(), "MemoryError"),
        (OSError(12, "Cannot allocate memory", "a.png"), "Cannot allocate memory"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (ImportError("libtorch_cpu.so: failed to map segment"), "libtorch_cpu.so: failed to map segment"),
        (ImportError("No module named 'x'"), None),
        (OSError(2, "No such file or directory", "memory"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_memory_shortage_returns_the_first_line(error: Exception, line: str | None) -> None:
    assert memory_shortage(error) == line


def test_memory_shortage_recognizes_torch_on_a_cpu() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory_shortage(error.value) is not None
