import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import randomize
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, RMSNorm, conv3d_with_zeros
from wan_vae.model.reach import Reach
from wan_vae.ops.workspace import Workspace


@given(st.integers(1, 4), st.builds(Reach, *[st.integers(0, 2)] * 5))
def test_zeros_around_are_the_same_as_padding(frames: int, zeros: Reach) -> None:
    x = torch.randn(1, 2, frames, 4, 5, dtype=torch.float64)
    weight = torch.randn(3, 2, zeros.before + 1, 3, 3, dtype=torch.float64)
    padded = F.pad(x, (zeros.left, zeros.right, zeros.top, zeros.bottom, zeros.before, 0))
    torch.testing.assert_close(conv3d_with_zeros(x, zeros, weight, None, Workspace()), F.conv3d(padded, weight))


def test_a_causal_convolution_has_its_last_tap_on_the_present() -> None:
    layer = CausalConv3d(1, 1, (3, 1, 1)).to(torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([100.0, 10.0, 1.0]).view(1, 1, 3, 1, 1))
        layer.bias.zero_()
        out = layer(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(1, 1, 3, 1, 1), Halo())
    assert out.flatten().tolist() == [1.0, 12.0, 123.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_in_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    # Values whose squares overflow float16.
    x = (300 * torch.randn(1, 8, 2, 3, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    norm = RMSNorm(8)
    with torch.no_grad():
        randomize(norm)
        half = norm.to(dtype)(x)
        exact = norm.to(torch.float64)(x.to(torch.float64))
    assert ((half - exact).abs() <= torch.finfo(dtype).eps * exact.abs()).all()


def test_a_norm_of_zeros_is_zero() -> None:
    assert torch.equal(RMSNorm(4)(torch.zeros(1, 4, 1, 2, 2)), torch.zeros(1, 4, 1, 2, 2))
