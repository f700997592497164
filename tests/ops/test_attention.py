"""Attention a few queries at a time is attention."""

import pytest
import torch
import torch.nn.functional as F

from wan_vae.ops import attention as module
from wan_vae.ops.attention import attention


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_few_queries_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    query, key, value = torch.randn(3, 2, 1, 35, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(query, key, value)
    monkeypatch.setattr(module, "_stores_all_scores", lambda *_: True)
    monkeypatch.setattr(module, "_MAX_SCORE_BYTES", rows * 35 * 8)
    with torch.no_grad():
        torch.testing.assert_close(attention(query, key, value), expected, rtol=1e-12, atol=1e-12)


def test_gradients_take_pytorchs_own_way() -> None:
    query = torch.randn(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, x, x), (query,))
