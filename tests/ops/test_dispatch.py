import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from wan_vae.ops import triton as dispatch
from wan_vae.ops.norm_silu import norm_silu

WITHOUT_TRITON = """
import sys

sys.modules["triton"] = None  # makes its import fail
import torch
from wan_vae import WanVAE

vae = WanVAE.from_pretrained("nano")
with torch.inference_mode():
    print(tuple(vae.decode(vae.encode(torch.zeros(1, 3, 5, 16, 16))).shape))
"""


def test_inference_on_a_cpu_needs_no_triton() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(1, 3, 5, 16, 16)"


CPU = torch.device("cpu")


def right(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    return out.copy_(norm_silu(x, gamma.view(-1, 1, 1, 1)))


def wrong(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    right(x, gamma, out)[0, -1, -1, -1, -1] += 1e-3
    return out


def nan(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    return out.fill_(torch.nan)


def failing(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
    raise RuntimeError("no compiler\nwas found")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Return what `_runs_on` says where this function takes the place of Triton's norm."""
    monkeypatch.setattr(dispatch, "_verdicts", {})

    def runs(kernel: Callable[[Tensor, Tensor, Tensor], Tensor]) -> bool:
        module = ModuleType("norm_silu")
        module.norm_silu = kernel
        monkeypatch.setitem(sys.modules, "wan_vae.ops.triton.norm_silu", module)
        return dispatch._runs_on(CPU)

    return runs


def test_probe_takes_a_kernel_that_computes_right(probed: Callable[..., bool]) -> None:
    assert probed(right)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_probe_does_not_depend_on_the_default_dtype(probed: Callable[..., bool], default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert probed(right)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("kernel", "words"), [(wrong, "wrong by 1"), (nan, "wrong by nan"), (failing, "no compiler")])
def test_probe_refuses_a_kernel_that_fails_or_lies_and_says_so_once(
    probed: Callable[..., bool],
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not probed(kernel)
    assert not probed(kernel)
    (record,) = caplog.records
    assert words in record.message


def test_probe_that_runs_out_of_memory_is_repeated(probed: Callable[..., bool]) -> None:
    def full(x: Tensor, gamma: Tensor, out: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    assert not probed(full)
    assert probed(right)
