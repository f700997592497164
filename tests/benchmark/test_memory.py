import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_vae.benchmark import measure as memory
from wan_vae.benchmark.measure import Peak, peak_of

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_it_sees_what_was_held_at_the_peak() -> None:
    held = torch.ones(64 * MIB, dtype=torch.uint8)

    def call() -> Tensor:
        torch.ones(96 * MIB, dtype=torch.uint8)  # gone before the next
        return torch.ones(32 * MIB, dtype=torch.uint8) + held[: 32 * MIB]

    for _ in range(2):
        result, peak = peak_of(call, CPU)
        assert result.numel() == 32 * MIB
        assert peak.reserved is None
        assert 96 * MIB <= peak.held + MIB < 104 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_memory_that_is_reused_counts() -> None:
    def call() -> None:
        # Each too small for glibc to map it by itself.
        _ = [torch.ones(2**16, dtype=torch.uint8) for _ in range(512)]

    call()
    assert peak_of(call, CPU)[1].held > 30 * MIB


def test_elsewhere_it_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "nowhere")
    assert peak_of(lambda: 3, CPU) == (3, Peak(None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda() -> None:
    result, peak = peak_of(lambda: torch.ones(64 * MIB, dtype=torch.uint8, device="cuda"), torch.device("cuda"))
    assert peak.held == result.numel()
    assert peak.reserved >= peak.held
