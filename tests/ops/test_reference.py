import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import randomize
from tests.ops import reference
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d, NormSiLU

shapes = st.tuples(*[st.integers(1, most) for most in (2, 9, 3, 5, 6)])


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@given(shapes)
def test_norm_and_silu_are_those_of_the_network(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    whole = torch.full((*shape[:2], shape[2] + 2, *shape[3:]), 7.0, dtype=torch.float64)
    out = whole[:, :, 2:]
    layer = NormSiLU(shape[1]).to(torch.float64)
    with torch.no_grad():
        randomize(layer)
        expected = layer(x)
        assert reference.norm_silu(x, layer.gamma, out) is out
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)
    assert (whole[:, :, :2] == 7).all()


@given(shapes, st.integers(1, 5), st.sampled_from([(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)]), st.booleans())
def test_the_convolution_is_that_of_the_network(
    shape: tuple[int, ...], out_channels: int, kernel: tuple[int, int, int], with_skip: bool
) -> None:
    x = random(*shape)
    layer = CausalConv3d(shape[1], out_channels, kernel).to(torch.float64)
    skip = random(shape[0], out_channels, *shape[2:]) if with_skip else None
    with torch.no_grad():
        expected = layer(x, Halo())
        result = reference.causal_conv3d(
            F.pad(x, (0, 0, 0, 0, kernel[0] - 1, 0)),
            layer.weight,
            layer.bias,
            skip,
            spatial_padding=(kernel[1] // 2, kernel[2] // 2),
        )
    torch.testing.assert_close(result, expected if skip is None else expected + skip, rtol=1e-13, atol=1e-13)
