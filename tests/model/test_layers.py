import pytest
import torch
import torch.nn.functional as F

from tests.helpers import randomize
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, RMSNorm


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


@pytest.mark.parametrize("scale", [1e-9, 1e-14])
def test_a_norm_of_almost_nothing_divides_by_its_length_or_its_bound(scale: float) -> None:
    x = scale * torch.randn(1, 4, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(4).to(torch.float64)
    with torch.no_grad():
        randomize(norm)
        torch.testing.assert_close(norm(x), 2 * F.normalize(x, dim=1, eps=1e-12) * norm.gamma, rtol=1e-12, atol=0)


def test_a_norm_of_zeros_is_zero() -> None:
    assert torch.equal(RMSNorm(4)(torch.zeros(1, 4, 1, 2, 2)), torch.zeros(1, 4, 1, 2, 2))
