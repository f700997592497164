from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from wan_vae.ops import norm_silu as module
from wan_vae.ops.norm_silu import norm_silu, norm_silu_into


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(0, 3), st.integers(0, 12), st.integers(0, 300)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    channels_last=st.booleans(),
)
def test_row_by_row_is_the_same_as_at_once(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, channels_last: bool
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    gamma = torch.linspace(-1, 2, shape[1]).view(-1, 1, 1, 1).to(dtype)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = x.to(dtype, memory_format=layout)
    out = torch.zeros(*shape[:2], shape[2] + 2, *shape[3:], dtype=dtype)
    with mock.patch.object(module, "_VALUES_IN_CACHE", 1000):
        norm_silu_into(out[:, :, 2:], x, gamma)
    # With half precision the whole is rounded once more, between the two.
    tolerance = {"rtol": 2**-7, "atol": 2**-9} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out[:, :, 2:], norm_silu(x, gamma), **tolerance)
    assert not out[:, :, :2].any()
