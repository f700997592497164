import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wan_vae.ops.memory_estimator import on_meta

aten = torch.ops.aten
SIZES = st.tuples(*[st.integers(1, 4)] * 5)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
PLAN = """
import re
import sys
import torch
from wan_vae import WanVAE

vae = WanVAE.from_pretrained("nano")
before = set(sys.modules)


def least(call):
    try:
        vae.plan(call, frames=9, height=256, width=256, memory=1)
    except ValueError as error:
        return re.search("(\\d+MiB) is the smallest", str(error))[1]


with torch.inference_mode():
    for call in ("encode", "decode"):
        for budget in ("64GiB", least(call)):  # in tiles, the least one
            vae.plan(call, frames=9, height=256, width=256, memory=budget)
print(sorted({"sympy", "torch._dynamo", "triton"} & (set(sys.modules) - before)))
"""


@st.composite
def tensors(draw: st.DrawFn, size: tuple[int, ...] | None = None) -> Tensor:
    """On the meta device, in either order, and perhaps a part of a larger tensor."""
    size = draw(SIZES) if size is None else size
    larger = draw(st.integers(0, 1))
    x = torch.empty((*size[:4], size[4] + larger), dtype=draw(DTYPES), device="meta")
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last_3d)
    return x[..., : size[4]]


def assert_same(operation: object, *args: object, same_order: bool = True) -> None:
    found = on_meta(operation, args, {})
    expected = operation(*args)  # type: ignore[operator]
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    assert not same_order or expected.numel() == 0 or _steps(found) == _steps(expected)


def _steps(x: Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


@given(st.data(), SIZES, st.sampled_from([aten.add.Tensor, aten.mul.Tensor]))
def test_of_two_tensors(data: st.DataObject, size: tuple[int, ...], operation: object) -> None:
    smaller = tuple(data.draw(st.sampled_from([1, length])) for length in size)
    one, other = data.draw(tensors(size)), data.draw(tensors(smaller))
    assert_same(operation, one, other)
    assert_same(operation, one, other[0])
    assert_same(operation, one, 2.5)


@given(tensors())
def test_of_one_tensor(x: Tensor) -> None:
    assert_same(aten.pow.Tensor_Scalar, x, 2)
    assert_same(aten.clamp_min.default, x, 0.5)
    assert_same(aten.clamp.default, x, -1.0, 1.0)
    assert_same(aten.rsqrt.default, x)


@given(tensors(), st.sampled_from([aten.add_.Tensor, aten.mul_.Tensor, aten.div_.Tensor]))
def test_in_place(x: Tensor, operation: object) -> None:
    assert on_meta(operation, (x, 2.0), {}) is x


@given(tensors(), st.sets(st.integers(-5, 4), min_size=1).filter(lambda dims: len({d % 5 for d in dims}) == len(dims)))
def test_sums(x: Tensor, dims: set[int]) -> None:
    for keepdim in (False, True):
        assert_same(aten.sum.dim_IntList, x, list(dims), keepdim)


@given(st.data(), SIZES, st.integers(0, 4), DTYPES, st.sampled_from([torch.contiguous_format, torch.channels_last_3d]))
def test_joining(
    data: st.DataObject, size: tuple[int, ...], dim: int, dtype: torch.dtype, order: torch.memory_format
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    sizes = [(*size[:dim], length, *size[dim + 1 :]) for length in lengths]
    assert_same(
        aten.cat.default, [torch.empty(part, dtype=dtype, device="meta", memory_format=order) for part in sizes], dim
    )


@given(tensors(), st.integers(1, 3), st.integers(-6, 5))
def test_stacking(x: Tensor, count: int, dim: int) -> None:
    # Only weights are stacked, whose order in memory makes no difference.
    assert_same(aten.stack.default, [x] * count, dim, same_order=False)


@given(tensors(), st.lists(st.integers(0, 2), min_size=5, max_size=6))
def test_repeating(x: Tensor, times: list[int]) -> None:
    assert_same(aten.repeat.default, x, times)


@given(tensors(), st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 2), st.integers(1, 2))
def test_convolutions(x: Tensor, channels: int, taps: tuple[int, ...], stride: int, padding: int) -> None:
    weight = torch.empty((channels, x.shape[1], *taps), dtype=x.dtype, device="meta")
    assert_same(aten.convolution.default, x, weight, None, [stride] * 3, [padding] * 3, [1] * 3, False, [0] * 3, 1)


def test_planning_imports_no_compiler() -> None:
    found = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
