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


def test_a_few_queries_at_a_time_take_scores_that_overflow_the_exponential() -> None:
    query, key, value = torch.randn(3, 2, 1, 35, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = module._by_rows(1e3 * query, key, value)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(1e3 * query, key, value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_scores_round_no_more_than_the_fused_kernel(dtype: torch.dtype) -> None:
    wide = torch.randn(3, 2, 1, 300, 384, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    narrow = wide.to(dtype)
    exact = F.scaled_dot_product_attention(*narrow.double().unbind())
    fused, by_rows = (
        (compute(*narrow.unbind()).double() - exact).square().mean().sqrt()
        for compute in (F.scaled_dot_product_attention, module._by_rows)
    )
    assert by_rows <= 1.05 * fused


def test_wide_heads_on_a_gpu_take_what_was_measured_to_be_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr(module, "_stores_all_scores", lambda *_: False)
    monkeypatch.setattr(module.autotune, "describe", lambda *_: "key")
    monkeypatch.setattr(module.autotune, "is_tunable", lambda key: True)
    monkeypatch.setattr(module.autotune, "run_fastest", lambda key, ways, device: ways["by rows"]())
    taken = []
    monkeypatch.setattr(module, "_by_rows", lambda query, key, value: taken.append(query.shape[-1]) or query)
    for channels in (256, 384):
        query, key, value = (torch.randn(1, 1, 6, channels).as_subclass(OnGPU) for _ in range(3))
        with torch.no_grad():
            attention(query, key, value)
    assert taken == [384]


def test_gradients_take_pytorchs_own_way() -> None:
    query = torch.randn(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention(x, x, x), (query,))
