"""The compiled convolution against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cpu_cases import around, channel_counts, channels_last, dtypes, needs_compiler, relative_error, sizes
from wan_vae.ops.cpu import kernels

# The unit roundoff of what is stored, and none where that is the arithmetic's own.
STORED = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}

pytestmark = [needs_compiler, pytest.mark.usefixtures("kernels")]


def winograd(
    x: Tensor | list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    zeros: tuple[int, int, int] = (0, 1, 1),
    doubled: bool = False,
) -> Tensor:
    size = kernels.winograd_packed_size(weight)
    memory = torch.full((size + 64,), torch.nan)
    pieces = [x] if isinstance(x, Tensor) else x
    result = kernels.winograd_conv3d(
        pieces, weight, bias, residual, out, memory[33:-31], zero_padding=zeros, upsample=doubled
    )
    assert memory[:33].isnan().all()
    assert memory[-31:].isnan().all()
    return result


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(x: Tensor, doubled: bool) -> Tensor:
    """In float64, and each pixel twice in height and width if `doubled`."""
    return x.double().repeat_interleave(2, 3).repeat_interleave(2, 4) if doubled else x.double()


class TestResult:
    @settings(max_examples=80)
    @given(
        dtypes,
        st.booleans(),
        st.integers(1, 2),
        channel_counts,
        channel_counts,
        st.integers(1, 6),
        sizes,
        sizes,
        st.sampled_from([1, 3]),
        st.tuples(*[st.integers(0, 1)] * 4),
        st.booleans(),
        st.booleans(),
    )
    def test_is_within_rounding_of_float64(
        self,
        dtype: torch.dtype,
        doubled: bool,
        batch: int,
        inputs: int,
        outputs: int,
        frames: int,
        height: int,
        width: int,
        taps: int,
        zeros: tuple[int, int, int, int],
        with_bias: bool,
        with_residual: bool,
    ) -> None:
        scale = 2 if doubled else 1
        top, bottom, left, right = zeros
        assume(top + height + bottom > 2)
        assume(left + width + right > 2)
        x = channels_last(batch, inputs, frames + taps - 1, height, width, dtype=dtype)
        size = ((top + height + bottom - 2) * scale, (left + width + right - 2) * scale)
        out = channels_last(batch, outputs, frames, *size, dtype=dtype, seed=1)
        weight = random(outputs, inputs, taps, 3, 3, dtype=dtype)
        bias = random(outputs) if with_bias else None
        residual = channels_last(*out.shape, dtype=dtype, seed=3) if with_residual else None
        assert winograd(x, weight, bias, residual, out, zeros=(0, top, left), doubled=doubled) is out
        wide = double(F.pad(x, (left, right, top, bottom)), doubled)
        # Of the doubled zeros, those further out are not looked at.
        wide = wide[..., 1:-1, 1:-1] if doubled else wide
        expected = F.conv3d(wide, weight.double())
        magnitude = F.conv3d(wide.abs(), weight.double().abs()).max()
        if bias is not None:
            expected = expected + bias.double().view(-1, 1, 1, 1)
        if residual is not None:
            expected = expected + residual
        assert ((out - expected).abs() <= 2e-6 * (magnitude + 10) + STORED[dtype] * expected.abs()).all()
        assert around(out) == out.numel()

    @pytest.mark.parametrize("doubled", [False, True])
    def test_separate_frames_and_implicit_zeros_give_the_same_bits(self, doubled: bool) -> None:
        pieces = [channels_last(2, 21, length, 9, 13, seed=length) for length in (2, 1, 3)]
        weight, scale = random(20, 21, 3, 3, 3), 2 if doubled else 1
        x = F.pad(torch.cat(pieces, dim=2), (0, 0, 0, 0, 2, 0)).contiguous(memory_format=torch.channels_last_3d)
        joined, apart = (channels_last(2, 20, 6, 9 * scale, 13 * scale) for _ in range(2))
        winograd(x, weight, None, None, joined, doubled=doubled)
        winograd(pieces, weight, None, None, apart, zeros=(2, 1, 1), doubled=doubled)
        assert torch.equal(apart, joined)

    @pytest.mark.parametrize("doubled", [False, True])
    @pytest.mark.parametrize("channels", [96, 384])
    def test_error_is_near_that_of_the_direct_way(self, channels: int, doubled: bool) -> None:
        x, weight = channels_last(1, channels, 3, 20, 20), random(64, channels, 3, 3, 3)
        wide = double(x, doubled)
        expected = F.conv3d(wide, weight.double(), padding=(0, 1, 1))
        direct = torch.mkldnn_convolution(wide.float(), weight, None, (0, 1, 1), (1, 1, 1), (1, 1, 1), 1)
        ours = winograd(x, weight, None, None, channels_last(*direct.shape, dtype=direct.dtype), doubled=doubled)
        assert relative_error(ours, expected) < (1.5 if doubled else 3) * relative_error(direct, expected)

    @pytest.mark.parametrize("doubled", [False, True])
    def test_bfloat16_is_no_further_off_than_pytorch(self, doubled: bool) -> None:
        x, weight = channels_last(1, 96, 3, 20, 20, dtype=torch.bfloat16), random(64, 96, 3, 3, 3, dtype=torch.bfloat16)
        wide = double(x, doubled)
        expected = F.conv3d(wide, weight.double(), padding=(0, 1, 1))
        direct = F.conv3d(wide.bfloat16(), weight, padding=(0, 1, 1))
        ours = winograd(x, weight, None, None, channels_last(*direct.shape, dtype=direct.dtype), doubled=doubled)
        assert relative_error(ours, expected) <= 1.0001 * relative_error(direct, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_weight_may_have_any_layout(self, dtype: torch.dtype) -> None:
        x, out = channels_last(1, 21, 2, 9, 9, dtype=dtype), channels_last(1, 35, 2, 9, 9, dtype=dtype)
        weight = random(35, 21, 3, 3, 3, dtype=dtype)
        expected = winograd(x, weight[:, :, -1:].contiguous(), None, None, out).clone()
        last = weight.contiguous(memory_format=torch.channels_last_3d)[:, :, -1:]
        backward = weight.flip(0, 1, 2, 3, 4).permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
        for same in (weight[:, :, -1:], last, backward.flip(0, 1, 3, 4)[:, :, :1]):
            assert torch.equal(winograd(x, same, None, None, out), expected)

    @pytest.mark.parametrize("doubled", [False, True])
    def test_same_bits_for_any_number_of_threads_frames_and_batch(self, doubled: bool) -> None:
        x = channels_last(2, 40, 9, 21, 30).contiguous(memory_format=torch.channels_last_3d)
        weight, scale = random(50, 40, 3, 3, 3), 2 if doubled else 1
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                out = channels_last(2, 50, 7, 21 * scale, 30 * scale)
                results.append(winograd(x, weight, None, None, out, doubled=doubled))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        out = torch.empty_like(results[0][1:, :, 3:4])
        part = winograd(x[1:, :, 3:6], weight, None, None, out, doubled=doubled)
        assert torch.equal(part, results[0][1:, :, 3:4])


def test_residual_may_be_the_output() -> None:
    x, out = channels_last(1, 20, 4, 9, 9), channels_last(1, 20, 2, 9, 9, seed=1)
    weight = random(20, 20, 3, 3, 3)
    apart = winograd(x, weight, None, out, torch.empty_like(out))
    assert torch.equal(winograd(x, weight, None, out, out), apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_reaches_all_that_depend_on_it(value: float, dtype: torch.dtype) -> None:
    x, weight = channels_last(1, 20, 3, 12, 12, dtype=dtype), random(20, 20, 3, 3, 3, dtype=dtype)
    x[0, 19, 1, 6, 6] = value
    out = winograd(x, weight, None, None, channels_last(1, 20, 1, 12, 12, dtype=dtype))
    assert out[..., 5:8, 5:8].isnan().all()
    assert not out[..., 9:, 9:].isnan().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_reaches_all_over_doubled_pixels(value: float) -> None:
    x, weight = channels_last(1, 20, 3, 6, 6), random(20, 20, 3, 3, 3)
    x[0, 19, 1, 3, 3] = value
    out = winograd(x, weight, None, None, channels_last(1, 20, 1, 12, 12), doubled=True)
    assert not out[..., 5:9, 5:9].isfinite().any()
    assert not out[..., 9:, 9:].isnan().any()


def test_nan_in_a_weight_stays_in_its_channel() -> None:
    x, weight = channels_last(1, 20, 3, 12, 12), random(20, 20, 3, 3, 3)
    weight[7, 19, 2, 1, 1] = torch.nan
    out = winograd(x, weight, None, None, channels_last(1, 20, 1, 12, 12))
    nan = out.isnan()
    assert nan[:, 7].all()
    assert nan.sum() == nan[:, 7].sum()


def test_supports_winograd_is_true_where_it_is_faster_than_onednn() -> None:
    x, wide = channels_last(1, 32, 3, 16, 16), random(32, 32, 3, 3, 3)
    assert kernels.supports_winograd(x, wide)
    assert not kernels.supports_winograd(x, wide[:2])
    assert not kernels.supports_winograd(x, wide[..., :1])
    assert not kernels.supports_winograd(x.bfloat16(), wide)
    assert not kernels.supports_winograd(x.half(), wide.half())
    assert not kernels.supports_winograd(x[..., :3, :3], wide)
    assert kernels.supports_winograd(x[..., :4, :4], wide)


@pytest.mark.parametrize("amx", [True, False])
def test_supports_winograd_in_bfloat16_is_false_with_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    kernels.processor_has_amx.cache_clear()
    x, weight = channels_last(1, 32, 4, 16, 16, dtype=torch.bfloat16), random(32, 32, 3, 3, 3, dtype=torch.bfloat16)
    assert kernels.supports_winograd(x, weight) is not amx
    assert kernels.supports_winograd(x[:, :, :3], weight, upsample=True) is not amx
    assert not kernels.supports_winograd(x[..., :15], weight)
    assert not kernels.supports_winograd(x[:, :8], weight[:, :8])
    assert kernels.supports_winograd(x.float(), weight.float())
    kernels.processor_has_amx.cache_clear()
