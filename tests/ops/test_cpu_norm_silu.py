"""The compiled normalization against float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.cpu_cases import around, channel_counts, channels_last, needs_compiler, relative_error, sizes
from wan_vae.ops.cpu import kernels


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    wide = x.double()
    inverse = wide.square().sum(dim=1, keepdim=True).clamp_min(1e-24).rsqrt()
    return F.silu(wide * inverse * x.shape[1] ** 0.5 * gamma.double().view(-1, 1, 1, 1))


@needs_compiler
@pytest.mark.usefixtures("kernels")
class TestNormSiLU:
    @settings(max_examples=40)
    @given(st.integers(1, 2), channel_counts, sizes, sizes, sizes, st.booleans(), st.sampled_from([1e-3, 1.0, 30.0]))
    def test_is_within_rounding_of_float64(
        self, batch: int, channels: int, frames: int, height: int, width: int, short: bool, size: float
    ) -> None:
        dtype = torch.bfloat16 if short else torch.float32
        x = channels_last(batch, channels, frames, height, width, dtype=dtype)
        gamma = torch.randn(channels, 1, 1, 1, generator=torch.Generator().manual_seed(1)) * size
        out = channels_last(*x.shape, dtype=dtype)
        assert kernels.norm_silu(x, gamma, out) is out
        expected = norm_silu(x, gamma)
        bound = 2**-8 if short else 2**-20
        # From 88 on, e to the power of it is no longer a float32.
        torch.testing.assert_close(out.double(), expected, rtol=bound * (1 + size), atol=1e-35)
        assert around(out) == out.numel()

    @pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
    def test_loses_no_more_than_one_rounding_does(self, size: float) -> None:
        x = channels_last(1, 96, 1, 60, 60, dtype=torch.bfloat16)
        gamma = torch.full((96,), size)
        expected = norm_silu(x, gamma)
        out = kernels.norm_silu(x, gamma, torch.empty_like(x))
        lost, least = ((result - expected).abs() for result in (out.double(), expected.bfloat16().double()))
        assert lost.mean() <= 1.0001 * least.mean()
        assert lost.max() <= 1.01 * least.max()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_nan_zero_and_infinity(self, dtype: torch.dtype) -> None:
        x = torch.ones(1, 20, 1, 1, 5, dtype=dtype).to(memory_format=torch.channels_last_3d)
        x[0, 3, 0, 0, 0] = torch.nan
        x[0, 17, 0, 0, 1] = torch.nan
        x[0, 5, 0, 0, 2] = torch.inf
        x[..., 3] = 0
        # Rounded without care, this NaN would become minus zero.
        x[0, 0, 0, 0, 4] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32).to(dtype)
        out = kernels.norm_silu(x, torch.ones(20), torch.empty_like(x))
        assert out[..., :2].isnan().all()
        assert out[..., 4].isnan().all()
        assert torch.equal(out[0, :, 0, 0, 2].isnan(), torch.arange(20) == 5)
        assert not out[..., 3].any()

    def test_saturates(self) -> None:
        x = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1, 1)
        out = kernels.norm_silu(x, torch.full((2,), 1e6), torch.empty_like(x))
        assert out.flatten().tolist() == pytest.approx([0.0, 1e6])

    def test_is_no_further_off_than_pytorch(self) -> None:
        x, gamma = channels_last(1, 96, 2, 64, 64), torch.full((96,), 2.0)
        expected = norm_silu(x, gamma)
        scale = 96**0.5 * gamma.view(-1, 1, 1, 1)
        theirs = F.silu(x * x.square().sum(dim=1, keepdim=True).rsqrt() * scale)
        ours = kernels.norm_silu(x, gamma, torch.empty_like(x))
        assert relative_error(ours, expected) <= relative_error(theirs, expected)
