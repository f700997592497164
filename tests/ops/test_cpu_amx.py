"""The compiled convolution for AMX against float64. What needs no AMX runs everywhere."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cpu_cases import around, channels_last, needs_compiler, relative_error, sizes
from wan_vae.ops.conv3d import can_fuse_upsample, convolve, convolve_upsampled
from wan_vae.ops.cpu import kernels as cpu_kernels
from wan_vae.ops.cpu.kernels import amx_conv3d, amx_packed_size, supports_amx
from wan_vae.ops.workspace import Workspace

pytestmark = [needs_compiler, pytest.mark.usefixtures("kernels")]

channel_counts = st.sampled_from([2, 12, 16, 24, 32, 48, 64, 96])


@pytest.fixture
def amx(kernels: object) -> None:
    if not cpu_kernels.has_amx():
        pytest.skip("NO AMX: the convolution for it is not tested")


def random(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def by_amx(
    x: Tensor | list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    before: int = 0,
    padding: tuple[int, int] = (0, 0),
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Tensor:
    packed = torch.full((amx_packed_size(weight) + 64,), torch.nan, dtype=torch.bfloat16)
    pieces = [x] if isinstance(x, Tensor) else x
    zeros = (before, *padding)
    result = amx_conv3d(pieces, weight, bias, residual, out, packed[:-64], zero_padding=zeros, stride=stride)
    assert packed[-64:].isnan().all()
    return result


@pytest.mark.usefixtures("amx")
class TestResult:
    @settings(max_examples=120)
    @given(
        st.integers(1, 2),
        channel_counts,
        st.integers(1, 70),
        st.integers(1, 3),
        sizes,
        st.integers(1, 40),
        st.sampled_from([(1, 1, 1), (3, 1, 1), (1, 2, 2), (1, 3, 3), (3, 3, 3), (2, 1, 3)]),
        st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 1, 1), (3, 2, 2)]),
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)),
        st.booleans(),
        st.booleans(),
        st.permutations(range(5)),
    )
    def test_is_within_rounding_of_float64(
        self,
        batch: int,
        inputs: int,
        outputs: int,
        frames: int,
        height: int,
        width: int,
        taps: tuple[int, int, int],
        stride: tuple[int, int, int],
        zeros: tuple[int, int, int, int],
        with_bias: bool,
        with_residual: bool,
        order: list[int],
    ) -> None:
        top, bottom, left, right = zeros
        assume(top + height + bottom >= taps[1])
        assume(left + width + right >= taps[2])
        x = channels_last(batch, inputs, frames + taps[0] - 1, height, width, dtype=torch.bfloat16)
        weight = random(outputs, inputs, *taps)
        weight = weight.permute(order).contiguous().permute([order.index(place) for place in range(5)])
        bias = random(outputs).float() if with_bias else None
        padded = F.pad(x.double(), (left, right, top, bottom))
        expected = F.conv3d(padded, weight.double(), stride=stride)
        magnitude = F.conv3d(padded.abs(), weight.double().abs(), stride=stride).max()
        out = channels_last(*expected.shape, dtype=torch.bfloat16, seed=1)
        residual = channels_last(*out.shape, dtype=torch.bfloat16, seed=3) if with_residual else None
        assert by_amx(x, weight, bias, residual, out, padding=(top, left), stride=stride) is out
        if bias is not None:
            expected = expected + bias.double().view(-1, 1, 1, 1)
        if residual is not None:
            expected = expected + residual
        assert ((out - expected).abs() <= 2e-6 * (magnitude + 10) + 2.0**-8 * expected.abs()).all()
        assert around(out) == out.numel()

    @given(
        st.integers(1, 2),
        st.lists(st.integers(1, 3), min_size=1, max_size=4),
        st.integers(0, 3),
        st.integers(1, 3),
        st.integers(1, 40),
    )
    def test_separate_frames_and_implicit_zeros_give_the_same_bits(
        self, batch: int, lengths: list[int], before: int, taps: int, width: int
    ) -> None:
        assume(before + sum(lengths) >= taps)
        pieces = [
            channels_last(batch, 32, length, 5, width, dtype=torch.bfloat16, seed=seed)
            for seed, length in enumerate(lengths)
        ]
        weight = random(20, 32, taps, 3, 3)
        x = F.pad(torch.cat(pieces, dim=2), (0, 0, 0, 0, before, 0)).contiguous(memory_format=torch.channels_last_3d)
        size = (batch, 20, x.shape[2] - taps + 1, 5, width)
        joined, apart = (channels_last(*size, dtype=torch.bfloat16) for _ in range(2))
        by_amx(x, weight, None, None, joined, padding=(1, 1))
        by_amx(pieces, weight, None, None, apart, before=before, padding=(1, 1))
        assert torch.equal(apart, joined)

    def test_weight_may_have_any_layout(self) -> None:
        x = channels_last(1, 64, 3, 9, 20, dtype=torch.bfloat16)
        out = channels_last(1, 35, 3, 9, 20, dtype=torch.bfloat16)
        weight = random(35, 64, 3, 3, 3)
        expected = by_amx(x, weight[:, :, -1:].contiguous(), None, None, out, padding=(1, 1)).clone()
        last = weight.contiguous(memory_format=torch.channels_last_3d)[:, :, -1:]
        for same in (weight[:, :, -1:], last):
            assert torch.equal(by_amx(x, same, None, None, out, padding=(1, 1)), expected)

    def test_same_bits_for_any_number_of_threads_frames_and_batch(self) -> None:
        x, weight = channels_last(2, 96, 7, 21, 40, dtype=torch.bfloat16), random(50, 96, 3, 3, 3)
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                out = channels_last(2, 50, 5, 21, 40, dtype=torch.bfloat16)
                results.append(by_amx(x, weight, None, None, out, padding=(1, 1)))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        part = by_amx(x[1:, :, 3:6], weight, None, None, torch.empty_like(results[0][1:, :, :1]), padding=(1, 1))
        assert torch.equal(part, results[0][1:, :, 3:4])

    def test_residual_may_be_the_output(self) -> None:
        x, out = (channels_last(1, 32, frames, 9, 33, dtype=torch.bfloat16) for frames in (4, 2))
        weight = random(32, 32, 3, 3, 3)
        apart = by_amx(x, weight, None, out, torch.empty_like(out), padding=(1, 1))
        assert torch.equal(by_amx(x, weight, None, out, out, padding=(1, 1)), apart)

    def test_nan_reaches_what_depends_on_it_and_nothing_else(self) -> None:
        x, weight = channels_last(1, 32, 3, 12, 36, dtype=torch.bfloat16), random(32, 32, 3, 3, 3)
        x[0, 31, 1, 6, 18] = torch.nan
        out = by_amx(x, weight, None, None, channels_last(1, 32, 1, 12, 36, dtype=torch.bfloat16), padding=(1, 1))
        depends = torch.zeros(12, 36, dtype=torch.bool)
        depends[5:8, 17:20] = True
        assert torch.equal(out.isnan(), depends.expand_as(out))

    def test_doubled_pixels_are_as_near_float64_as_the_direct_way(self) -> None:
        x, weight = channels_last(1, 96, 2, 20, 33, dtype=torch.bfloat16), random(48, 96, 1, 3, 3)
        with torch.inference_mode():
            assert can_fuse_upsample(x, weight)
            ours = convolve_upsampled(x, weight, None, Workspace(), zero_padding=(0, 1, 1, 1, 1))
        wide = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        expected = F.conv3d(wide.double(), weight.double(), padding=(0, 1, 1))
        direct = F.conv3d(wide, weight, padding=(0, 1, 1))
        # The sums of two or four taps are rounded once more.
        assert relative_error(ours, expected) < 2 * relative_error(direct, expected)

    def test_convolve_uses_it(self) -> None:
        x, weight = channels_last(1, 32, 3, 12, 12, dtype=torch.bfloat16), random(32, 32, 3, 3, 3)
        apart = by_amx(x, weight, None, None, channels_last(1, 32, 1, 12, 12, dtype=torch.bfloat16), padding=(1, 1))
        with torch.inference_mode():
            assert torch.equal(convolve([x], weight, None, Workspace(), zero_padding=(0, 1, 1, 1, 1)), apart)


@pytest.mark.usefixtures("amx")
def test_supports_amx_needs_bfloat16_and_channels_in_even_parts() -> None:
    x, weight = channels_last(1, 64, 3, 8, 8, dtype=torch.bfloat16), random(32, 64, 3, 3, 3)
    assert supports_amx(x, weight)
    assert supports_amx(x[:, :48], weight[:, :48])
    assert not supports_amx(x[:, :3], weight[:, :3])
    assert not supports_amx(x[:, :34], weight[:, :34].repeat(1, 1, 2, 1, 1))
    assert not supports_amx(x.float(), weight.float())


def test_supports_amx_without_permission_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_permits_amx", lambda compiled: False)
    assert not supports_amx(channels_last(1, 64, 3, 8, 8, dtype=torch.bfloat16), random(32, 64, 3, 3, 3))


@pytest.mark.parametrize(("outputs", "values"), [(32, 32), (33, 48), (3, 16)])
def test_packed_size_is_that_of_whole_registers(outputs: int, values: int) -> None:
    assert amx_packed_size(random(outputs, 64, 3, 3, 3)) == values * 64 * 27
