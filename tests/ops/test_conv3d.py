"""Every way to convolve gives the plain way's result."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from wan_vae.errors import UserError
from wan_vae.ops.conv3d import check_convolutions, convolve, lay_out_weights
from wan_vae.ops.cpu import kernels
from wan_vae.ops.workspace import Workspace


def drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("compiled", [True, False])
@given(
    channels=st.tuples(st.sampled_from([1, 3, 16, 33]), st.sampled_from([1, 3, 16, 33])),
    size=st.tuples(st.integers(1, 2), st.integers(0, 2), st.integers(1, 11), st.integers(1, 11)),
    kernel=st.sampled_from([(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1), (1, 2, 2)]),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)).map(lambda steps: (*steps, steps[1])),
    channels_last=st.booleans(),
    with_bias=st.booleans(),
    with_skip=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    zeros=st.none() | st.tuples(*[st.integers(0, 2)] * 5),
    pieces=st.integers(1, 3),
)
def test_without_gradients_the_result_is_the_same(
    compiled: bool,
    channels: tuple[int, int],
    size: tuple[int, int, int, int],
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    channels_last: bool,
    with_bias: bool,
    with_skip: bool,
    dtype: torch.dtype,
    zeros: tuple[int, int, int, int, int] | None,
    pieces: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, more_frames, height, width = size
    if zeros is None:
        zeros = (0, kernel[1] // 2, kernel[1] // 2, kernel[2] // 2, kernel[2] // 2)
    before, top, bottom, left, right = zeros
    assume(top + height + bottom >= kernel[1])
    assume(left + width + right >= kernel[2])
    pieces = min(pieces, kernel[0] + more_frames)
    x = drawn(generator, batch, channels[0], kernel[0] + more_frames, height, width)
    weight = drawn(generator, channels[1], channels[0], *kernel)
    bias = drawn(generator, channels[1]) if with_bias else None
    # What all ways start from is rounded alike.
    x, weight, bias = (None if value is None else value.to(dtype).to(torch.float64) for value in (x, weight, bias))
    expected = F.conv3d(F.pad(x, (left, right, top, bottom, before, 0)), weight, bias, stride)
    skip = drawn(generator, *expected.shape).to(dtype) if with_skip else None
    expected = expected if skip is None else expected + skip
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = x.to(dtype, memory_format=layout)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.no_grad(), mock.patch.object(kernels, "library", kernels.library if compiled else lambda: None):
        parts = [x] if pieces == 1 else list(x.split([*[1] * (pieces - 1), x.shape[2] - pieces + 1], dim=2))
        out = convolve(parts, weight, bias, Workspace(), zero_padding=zeros, stride=stride, residual=skip)
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    scale = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(out.to(torch.float64), expected, rtol=0, atol=tolerance * max(scale, 1))


@given(st.integers(1, 4), st.tuples(*[st.integers(0, 2)] * 5))
def test_with_gradients_the_result_is_the_same(frames: int, zeros: tuple[int, int, int, int, int]) -> None:
    before, top, bottom, left, right = zeros
    x = torch.randn(1, 2, frames, 4, 5, dtype=torch.float64)
    weight = torch.randn(3, 2, before + 1, 3, 3, dtype=torch.float64)
    expected = F.conv3d(F.pad(x, (left, right, top, bottom, before, 0)), weight)
    torch.testing.assert_close(convolve(x.split(1, dim=2), weight, None, Workspace(), zero_padding=zeros), expected)


def test_check_convolutions_refuses_a_device_that_computes_wrongly() -> None:
    device, right = torch.device("cpu"), F.conv3d
    check_convolutions.cache_clear()
    check_convolutions(device)
    check_convolutions.cache_clear()
    results = iter([right, lambda x, weight: right(x, weight) + 1])
    with (
        mock.patch.object(F, "conv3d", lambda x, weight: next(results)(x, weight)),
        pytest.raises(UserError, match="3-D convolutions on cpu wrongly"),
    ):
        check_convolutions(device)
    check_convolutions.cache_clear()


def test_weights_get_the_order_of_cudnn_but_for_those_in_a_tensor_that_others_share() -> None:
    alone, shared = torch.nn.Conv3d(4, 8, 3), torch.nn.Conv3d(4, 8, 3)
    flat = torch.randn(2 * shared.weight.numel(), generator=torch.Generator().manual_seed(0))
    shared.weight.data = flat[: shared.weight.numel()].view(shared.weight.shape)
    before = alone.weight.clone()
    lay_out_weights(torch.nn.ModuleList([alone, shared]))
    assert alone.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(alone.weight, before)
    flat.zero_()
    assert not shared.weight.any()
