# Kernels against their twins. Not collected by itself: test_triton_kernels.py runs it in a process of its own, since
# Triton's interpreter must be asked for before Triton is imported.

import os
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import reference
from wan_vae.ops import autotune
from wan_vae.ops.conv3d import convolve_on_gpu
from wan_vae.ops.triton import conv3d_descriptors as triton_conv3d_descriptors
from wan_vae.ops.triton import conv3d_pointers as triton_conv3d_pointers
from wan_vae.ops.triton.bias_residual import add_bias_and_residual
from wan_vae.ops.triton.common import Tile
from wan_vae.ops.triton.conv3d import candidates, pack_weight
from wan_vae.ops.triton.norm_silu import norm_silu

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GARBAGE = 1e4

if INTERPRETED:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    as_it_is = InterpreterBuilder.create_dot

    # Otherwise matrices of bfloat16 are multiplied as the integers that the interpreter keeps them in.
    def create_dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        wide = [builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return as_it_is(builder, *wide, *others)

    InterpreterBuilder.create_dot = create_dot


class Margins(NamedTuple):
    """How much of a larger tensor lies before, below and right of one that is a part of it."""

    frames: int = 0
    rows: int = 0
    columns: int = 0


NONE = Margins()
# Shapes are small enough to be understood as they are, and making them smaller takes minutes.
quickly = settings(
    max_examples=40 if INTERPRETED else 15,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
margins = st.builds(Margins, *[st.sampled_from([0, 2])] * 3)
shapes = st.tuples(*[st.integers(1, most) for most in (2, 200, 3, 4, 5)])


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Part:
    """A tensor, stored channels-last within a larger one full of garbage."""

    def __init__(self, values: Tensor, around: Margins) -> None:
        batch, channels, frames, height, width = values.shape
        shape = (batch, channels, frames + around.frames, height + around.rows, width + around.columns)
        self.whole = torch.full(shape, GARBAGE, dtype=values.dtype).contiguous(memory_format=torch.channels_last_3d)
        self.whole = self.whole.to(DEVICE)
        self.tensor = self.whole[:, :, around.frames :, :height, :width]
        self.tensor.copy_(values)

    def check_garbage(self) -> None:
        """Check that nothing was written outside of the tensor; what is inside is lost."""
        self.tensor.fill_(GARBAGE)
        assert (self.whole == GARBAGE).all()


def check(result: Tensor, twin: Tensor, exact: Tensor, products: int = 1) -> None:
    """Check that a kernel comes as close to the result in float64 as its twin, but for rounding.

    Tensor cores sum so many products with fewer bits than float32 has.
    """
    summing = max(1e-6, 3e-9 * products) * exact.abs().amax()
    assert result.dtype == twin.dtype
    assert result.shape == twin.shape == exact.shape
    error = (result.cpu().to(torch.float64) - exact).abs()
    if twin.dtype == torch.float32:
        assert (error <= 1e-5 * exact.abs() + summing).all()
        return
    numbers = torch.finfo(twin.dtype)
    rounding = numbers.eps * exact.abs() + numbers.smallest_normal * numbers.eps
    # Of a sum in float32, in another order.
    assert (error <= (twin.to(torch.float64) - exact).abs() + rounding + summing).all()


@quickly
@given(shapes, st.sampled_from(DTYPES), margins, margins, st.booleans())
def test_norm_and_silu(
    shape: tuple[int, ...], dtype: torch.dtype, around_x: Margins, around_out: Margins, with_bias: bool
) -> None:
    # Squares that overflow float16.
    values, gamma = 300 * random(shape, dtype), random((shape[1], 1, 1, 1), dtype, seed=1)
    x, out = Part(values, around_x), Part(torch.zeros_like(values), around_out)
    bias = 300 * random((shape[1],), dtype, seed=2) if with_bias else None
    given_bias = None if bias is None else bias.to(DEVICE)
    assert norm_silu(x.tensor, gamma.to(DEVICE), out.tensor, given_bias) is out.tensor
    wide_bias = None if bias is None else bias.double()
    exact = reference.norm_silu(values.double(), gamma.double(), torch.empty(shape, dtype=torch.float64), wide_bias)
    check(out.tensor, reference.norm_silu(values, gamma, torch.empty_like(values), bias), exact)
    out.check_garbage()


@pytest.mark.parametrize("channels", [80, 96, 160, 384, 1000, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_silu_of_wide_layers_with_a_pixel_of_zeros(channels: int, dtype: torch.dtype) -> None:
    values, gamma = random((1, channels, 1, 2, 9), dtype), random((channels,), torch.float32, seed=1)
    values[..., 1] = 0
    x = Part(values, NONE)
    exact = reference.norm_silu(values.double(), gamma.double(), torch.empty(values.shape, dtype=torch.float64))
    twin = reference.norm_silu(values, gamma, torch.empty_like(values))
    check(norm_silu(x.tensor, gamma.to(DEVICE), x.tensor), twin, exact)


@quickly
@given(shapes, st.sampled_from(DTYPES), margins, margins, st.booleans(), st.booleans())
def test_bias_and_residual(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    around_x: Margins,
    around_residual: Margins,
    with_bias: bool,
    with_residual: bool,
) -> None:
    values, more = random(shape, dtype), random(shape, dtype, seed=1)
    bias = random((shape[1],), dtype, seed=2) if with_bias else None
    residual = more if with_residual else None
    x, place = Part(values, around_x), Part(more, around_residual)
    result = add_bias_and_residual(
        x.tensor, None if bias is None else bias.to(DEVICE), place.tensor if with_residual else None
    )
    assert result is x.tensor
    wide = [None if y is None else y.double() for y in (bias, residual)]
    exact = reference.add_bias_and_residual(values.double(), *wide)
    check(result, reference.add_bias_and_residual(values.clone(), bias, residual), exact)
    x.check_garbage()


@pytest.mark.parametrize("channels", [4096, 4608])
@pytest.mark.parametrize("with_bias", [True, False])
def test_bias_and_residual_of_the_widest_layers(channels: int, with_bias: bool) -> None:
    # The four positions of an upsampled pixel of Qwen-Image-2.1.
    values = random((1, channels, 1, 2, 3), torch.bfloat16)
    bias = random((channels,), torch.bfloat16, seed=1) if with_bias else None
    x = Part(values, NONE)
    result = add_bias_and_residual(x.tensor, None if bias is None else bias.to(DEVICE), None)
    exact = reference.add_bias_and_residual(values.double(), None if bias is None else bias.double(), None)
    check(result, reference.add_bias_and_residual(values.clone(), bias, None), exact)


@quickly
@given(shapes, st.sampled_from(DTYPES), margins, st.booleans())
def test_bias_on_the_way_to_every_other_pixel(
    shape: tuple[int, ...], dtype: torch.dtype, around_x: Margins, with_bias: bool
) -> None:
    # As the four positions of an upsampled pixel are stored.
    values = random(shape, dtype)
    bias = random((shape[1],), dtype, seed=2) if with_bias else None
    x, out = Part(values, around_x), Part(torch.zeros(*shape[:3], 2 * shape[3], 2 * shape[4], dtype=dtype), NONE)
    part = out.tensor[..., 1::2, ::2]
    given_bias = None if bias is None else bias.to(DEVICE)
    assert add_bias_and_residual(x.tensor, given_bias, None, part) is part
    exact = reference.add_bias_and_residual(values.double(), None if bias is None else bias.double(), None)
    check(part, reference.add_bias_and_residual(values.clone(), bias, None), exact)
    assert torch.count_nonzero(out.tensor[..., ::2, :]) == torch.count_nonzero(out.tensor[..., 1::2]) == 0


class Convolution(NamedTuple):
    """A convolution of random numbers."""

    kernel: tuple[int, int, int]
    padding: tuple[int, int]
    shape: tuple[int, int, int, int, int]  # of the input
    out_channels: int
    dtype: torch.dtype
    with_bias: bool = True
    with_residual: bool = True
    is_packed: bool = True
    around: Margins = NONE

    def check(self, kernel: Any, tile: Tile) -> None:
        channels, kernel_size = self.shape[1], self.kernel
        values = random(self.shape, self.dtype)
        weight = random((self.out_channels, channels, *kernel_size), torch.float32, seed=1)
        weight = (weight / weight[0].numel() ** 0.5).to(self.dtype)
        bias = random((self.out_channels,), self.dtype, seed=2) if self.with_bias else None
        twin = reference.causal_conv3d(values, weight, None, None, spatial_padding=self.padding)
        residual = random(tuple(twin.shape), self.dtype, seed=3) if self.with_residual else None
        twin = reference.causal_conv3d(values, weight, bias, residual, spatial_padding=self.padding)
        wide = [None if y is None else y.double() for y in (bias, residual)]
        exact = reference.causal_conv3d(values.double(), weight.double(), *wide, spatial_padding=self.padding)

        x, out = Part(values, self.around), Part(torch.full_like(twin, torch.nan), self.around)
        stored = pack_weight(weight) if self.is_packed else weight.contiguous(memory_format=torch.channels_last_3d)
        kernel.convolve(
            x.tensor,
            stored.to(DEVICE),
            None if bias is None else bias.to(DEVICE),
            None if residual is None else Part(residual, NONE).tensor,
            out.tensor,
            self.padding,
            tile,
        )
        check(out.tensor, twin, exact, weight[0].numel())
        out.check_garbage()


ALL, SOME = (1, 1), (0, 0)
SMALL = Tile(4, 8, 16, 0, 16, 4, 2)
POINTERS = {
    "one pixel, one frame": (Convolution((1, 3, 3), ALL, (1, 3, 1, 1, 1), 2, torch.float32), SMALL),
    "3x3x3": (Convolution((3, 3, 3), ALL, (1, 5, 3, 4, 7), 7, torch.float32), SMALL),
    "batch, several tiles": (Convolution((3, 3, 3), ALL, (2, 4, 3, 5, 9), 5, torch.float32), SMALL),
    "zeros of its own": (Convolution((3, 3, 3), SOME, (1, 16, 4, 6, 9), 17, torch.bfloat16), SMALL),
    "one frame of taps": (Convolution((1, 3, 3), ALL, (1, 17, 2, 4, 8), 33, torch.float16), SMALL),
    "frames only": (Convolution((3, 1, 1), SOME, (1, 40, 5, 3, 3), 20, torch.bfloat16), SMALL),
    "one tap": (Convolution((1, 1, 1), SOME, (2, 33, 2, 3, 9), 16, torch.float32), SMALL),
    "even kernel": (Convolution((1, 2, 2), SOME, (1, 8, 2, 5, 6), 9, torch.float16), SMALL),
    "even kernel with zeros": (Convolution((1, 2, 2), ALL, (1, 8, 1, 3, 6), 9, torch.float32), SMALL),
    "columns only": (Convolution((2, 1, 3), (0, 1), (1, 3, 3, 2, 9), 4, torch.float32), SMALL),
    "no bias": (Convolution((3, 3, 3), ALL, (1, 5, 3, 4, 7), 7, torch.bfloat16, with_bias=False), SMALL),
    "no residual": (Convolution((3, 3, 3), ALL, (1, 5, 3, 4, 7), 7, torch.float16, with_residual=False), SMALL),
    "channels-last weight": (Convolution((3, 3, 3), ALL, (1, 24, 3, 3, 5), 7, torch.float32, is_packed=False), SMALL),
    "parts": (Convolution((1, 3, 3), ALL, (2, 6, 2, 4, 5), 7, torch.bfloat16, around=Margins(2, 1, 3)), SMALL),
    "part of frames": (Convolution((3, 3, 3), ALL, (1, 8, 3, 4, 5), 7, torch.float32, around=Margins(2)), SMALL),
    "two sums": (Convolution((1, 3, 3), ALL, (1, 20, 1, 4, 9), 75, torch.float32), Tile(4, 8, 32, 16, 16, 4, 2)),
    "Wan's tile": (Convolution((1, 3, 3), ALL, (1, 96, 1, 9, 17), 96, torch.bfloat16), Tile(8, 16, 64, 32, 32, 8, 4)),
}
LINE = Tile(1, 16, 16, 0, 16, 4, 2)
DESCRIPTORS = {
    "3x3x3": (Convolution((3, 3, 3), ALL, (1, 8, 3, 2, 7), 8, torch.float16), LINE),
    "several tiles": (Convolution((1, 3, 3), ALL, (2, 24, 2, 2, 18), 24, torch.bfloat16), LINE),
    "one run": (Convolution((3, 3, 3), SOME, (1, 16, 4, 5, 6), 16, torch.bfloat16), LINE),
    "one run of several tiles": (Convolution((1, 3, 3), SOME, (1, 8, 1, 5, 8), 8, torch.bfloat16), LINE),
    "one run of one column": (Convolution((1, 3, 1), SOME, (1, 8, 2, 6, 1), 8, torch.float16), LINE),
    "one run in a batch": (Convolution((2, 2, 2), SOME, (2, 8, 3, 4, 5), 8, torch.float16), LINE),
    "one run of a part": (Convolution((1, 3, 3), SOME, (1, 8, 2, 4, 7), 8, torch.float16, around=Margins(1)), LINE),
    "part of rows": (Convolution((1, 3, 3), SOME, (1, 8, 1, 4, 6), 8, torch.float16, around=Margins(0, 1, 2)), LINE),
    "part with zeros": (Convolution((1, 3, 3), ALL, (1, 8, 1, 3, 6), 8, torch.bfloat16, around=Margins(1, 1, 1)), LINE),
    "one tap": (Convolution((1, 1, 1), SOME, (1, 40, 2, 3, 5), 16, torch.bfloat16), LINE),
    "frames only": (Convolution((3, 1, 1), SOME, (1, 8, 5, 3, 3), 16, torch.float16), LINE),
    "nothing added": (Convolution((1, 3, 3), ALL, (1, 8, 1, 1, 1), 8, torch.float16, False, False), LINE),
    "two sums": (Convolution((1, 3, 3), ALL, (1, 24, 1, 1, 9), 72, torch.float16), Tile(1, 16, 32, 16, 16, 4, 2)),
    "Wan's tile": (Convolution((1, 3, 3), SOME, (1, 96, 1, 9, 18), 96, torch.bfloat16), Tile(1, 128, 64, 32, 32, 8, 4)),
}


@pytest.mark.parametrize(("convolution", "tile"), POINTERS.values(), ids=POINTERS.keys())
def test_a_convolution_by_pointers(convolution: Convolution, tile: Tile) -> None:
    convolution.check(triton_conv3d_pointers, tile)


@pytest.mark.parametrize(("convolution", "tile"), DESCRIPTORS.values(), ids=DESCRIPTORS.keys())
def test_a_convolution_by_descriptors(convolution: Convolution, tile: Tile) -> None:
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no engine that copies boxes")
    convolution.check(triton_conv3d_descriptors, tile)


def test_boxes_are_only_copied_of_what_is_aligned() -> None:
    x, weight = Part(random((1, 16, 3, 4, 8), torch.bfloat16), Margins(2, 1, 1)).tensor, (8, 16, 1, 3, 3)
    packed = pack_weight(random(weight, torch.bfloat16)).to(DEVICE)
    assert triton_conv3d_descriptors.can_fetch(x, packed)
    assert not triton_conv3d_descriptors.can_fetch(x.float(), packed.float())
    assert not triton_conv3d_descriptors.can_fetch(x, packed.contiguous())
    assert not triton_conv3d_descriptors.can_fetch(x[:, 4:12], packed[:, 4:12])
    for channels in ((8, 12), (12, 16)):
        x = Part(random((1, channels[1], 1, 3, 1), torch.bfloat16), NONE).tensor
        assert not triton_conv3d_descriptors.can_fetch(x, pack_weight(x.new_empty(*channels, 1, 3, 3)))


@pytest.mark.parametrize("is_given", [True, False])
def test_the_residual_may_be_where_the_result_goes(is_given: bool) -> None:
    values, weight = random((1, 8, 3, 3, 5), torch.bfloat16), random((8, 8, 3, 3, 3), torch.bfloat16, seed=1) / 15
    residual, bias = random((1, 8, 1, 3, 5), torch.bfloat16, seed=2), random((8,), torch.bfloat16, seed=3)
    x, place = Part(values, NONE).tensor, Part(residual, NONE).tensor
    packed = pack_weight(weight.to(DEVICE))
    compute, *_ = candidates(x, packed, bias.to(DEVICE), place, place if is_given else None, (1, 1)).values()
    result = compute()
    assert (result is place) == is_given
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    wide = [y.double() for y in (values, weight, bias, residual)]
    check(result, reference.causal_conv3d(values, weight, bias, residual), reference.causal_conv3d(*wide))


@pytest.mark.parametrize("width", [1, 3])
def test_pixels_may_be_further_apart_than_32_bits_count(width: int) -> None:
    # A stride that has 32 bits, of which two have not.
    far = 2**30 + 64
    try:
        memory = torch.empty(3 * far, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("this machine does not lend 6 GiB, of which hardly any are used")
    shape = (1, 8, 3, 1, width)
    x, out = (memory[start:].as_strided(shape, (0, 1, far, 24, 8)) for start in (0, 32))
    values, gamma = random(shape, torch.float16), random((8,), torch.float16, seed=1)
    x.copy_(values)

    norm_silu(x, gamma.to(DEVICE), out)
    exact = reference.norm_silu(values.double(), gamma.double(), torch.empty(shape, dtype=torch.float64))
    check(out, reference.norm_silu(values, gamma, torch.empty_like(values)), exact)
    for taps in (1, 3):
        weight = random((8, 8, taps, 1, 1), torch.float16, seed=2) / 5
        part = out[:, :, taps - 1 :]
        triton_conv3d_pointers.convolve(x, pack_weight(weight).to(DEVICE), None, None, part, SOME, SMALL)
        exact = reference.causal_conv3d(values.double(), weight.double(), None, None, spatial_padding=SOME)
        check(part, reference.causal_conv3d(values, weight, None, None, spatial_padding=SOME), exact)
    out.copy_(values)
    check(add_bias_and_residual(out, None, x), 2 * values, 2 * values.double())


@pytest.mark.skipif(INTERPRETED, reason="milliseconds on a GPU, minutes in the interpreter")
@pytest.mark.parametrize("channels", [(96, 96), (192, 192), (384, 384), (3, 96), (96, 12), (256, 512), (160, 320)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [ALL, SOME])
def test_every_way_on_layers_as_wide_as_those_of_wan(
    channels: tuple[int, int], dtype: torch.dtype, padding: tuple[int, int]
) -> None:
    in_channels, out_channels = channels
    values = random((1, in_channels, 4, 34, 130), dtype)
    weight = (random((out_channels, in_channels, 3, 3, 3), torch.float32, seed=1) / (27 * in_channels) ** 0.5).to(dtype)
    twin = reference.causal_conv3d(values, weight, None, None, spatial_padding=padding)
    exact = reference.causal_conv3d(values.double(), weight.double(), None, None, spatial_padding=padding)
    x, out = Part(values, NONE).tensor, Part(twin, NONE).tensor
    for compute in candidates(x, pack_weight(weight).to(DEVICE), None, None, out, padding).values():
        out.fill_(torch.nan)
        check(compute(), twin, exact, weight[0].numel())


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("place", [0, -1])
def test_the_networks_convolution_is_the_same_whichever_way_is_chosen(stride: tuple[int, int, int], place: int) -> None:
    values, weight = random((1, 8, 3, 5, 6), torch.float32), random((8, 8, 3, 3, 3), torch.float32, seed=1) / 15
    bias, x = random((8,), torch.float32, seed=2), Part(values, NONE).tensor
    exact = F.conv3d(values.double(), weight.double(), bias.double(), stride, (0, 1, 1))
    skip = random(tuple(exact.shape), torch.float32, seed=3)

    def chosen(key: str, ways: dict[str, Any], device: torch.device) -> Tensor:
        return list(ways.values())[place]()

    with (
        mock.patch.object(autotune, "run_fastest", chosen),
        mock.patch.object(autotune, "is_tunable", return_value=True),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        result = convolve_on_gpu(x, weight.to(DEVICE), bias.to(DEVICE), (1, 1), stride, Part(skip, NONE).tensor)
    torch.testing.assert_close(result.cpu().double(), exact + skip.double(), rtol=1e-5, atol=1e-5)
