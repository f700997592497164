import pytest
import torch

from wan_vae.benchmark import measure as ceilings
from wan_vae.benchmark.measure import copy_ceiling, matmul_ceiling


def test_they_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (16, 64)})
    monkeypatch.setattr(ceilings, "_COPIED_BYTES", {"cpu": 2**20})
    asked = []
    seconds = {2 * 16**3: 1e-6, 2 * 64**3: 1e-5, 2**20: 1e-4}
    monkeypatch.setattr(ceilings, "_least_seconds", lambda call, device: seconds[asked.pop(0)])
    asked[:] = [2 * 16**3, 2 * 64**3]
    assert matmul_ceiling(torch.float32, torch.device("cpu")) == pytest.approx(2 * 64**3 / 1e-5)
    asked[:] = [2**20]
    assert copy_ceiling(torch.device("cpu")) == pytest.approx(2 * 2**20 / 1e-4)


def test_a_slow_dtype_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (4, 8)})
    calls = []

    def slow(call: object, device: torch.device) -> float:
        calls.append(call)
        return 1.0

    monkeypatch.setattr(ceilings, "_least_seconds", slow)
    assert matmul_ceiling(torch.float16, torch.device("cpu")) == 2 * 4**3
    assert len(calls) == 1


def test_the_precision_of_products_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_SIDES", {"cpu": (4,)})
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert matmul_ceiling(torch.float32, torch.device("cpu")) > 0
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
