"""Attention among the pixels of a frame, with memory linear in the number of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from wan_vae.ops import autotune, needs_plain_ops
from wan_vae.ops.memory_estimator import estimator_of

# Bytes of the scores of the queries that are computed together.
_MAX_SCORE_BYTES = 2**26
# Wider heads, as Wan's 384 and 1024, have no fused kernel of recent GPUs: PyTorch falls back to one for older GPUs.
_WIDEST_FUSED = 256


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return `softmax(query key^T / sqrt(C)) value` of (N, 1, queries, C) and (N, 1, keys, C).

    Where PyTorch has no fused kernel and would store the scores of all pairs, a few queries are computed at a time; on
    GPUs also where `wan_vae.ops.autotune` measured that to be faster.
    """
    estimator = estimator_of(query)
    if estimator is not None:
        return estimator.count_attention(query, key)
    if needs_plain_ops():
        return F.scaled_dot_product_attention(query, key, value)
    if _stores_all_scores(query, key, value):
        return _by_rows(query, key, value)
    if query.device.type == "cuda" and query.shape[-1] > _WIDEST_FUSED:
        name = autotune.describe("attention", query.device, query, key)
        if autotune.is_tunable(name):
            ways = {
                "fused": lambda: F.scaled_dot_product_attention(query, key, value),
                "by rows": lambda: _by_rows(query, key, value),
            }
            return autotune.run_fastest(name, ways, query.device)
    return F.scaled_dot_product_attention(query, key, value)


def _by_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the scores of some queries at a time as matrix products, in float32 as fused kernels do."""
    wide = torch.promote_types(query.dtype, torch.float32)
    rows = max(1, _MAX_SCORE_BYTES // (key.shape[2] * wide.itemsize))
    attended = torch.empty_like(query)
    for frame in range(query.shape[0]):
        keys, values = key[frame, 0].T, value[frame, 0]
        for start in range(0, query.shape[2], rows):
            some = slice(start, start + rows)
            scores = _product(query[frame, 0, some], keys, wide)
            # Divided by the sum of what was rounded, at the end, so that rounding shifts no mean.
            shares = scores.sub_(scores.amax(dim=-1, keepdim=True)).mul_(query.shape[-1] ** -0.5).exp_().to(query.dtype)
            total = shares.sum(dim=-1, keepdim=True, dtype=wide)
            attended[frame, 0, some] = _product(shares, values, wide).div_(total)
    return attended


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `a b`, from a narrower dtype without rounding to it."""
    if a.is_cuda and a.dtype != dtype:
        try:
            return torch.mm(a, b, out_dtype=dtype)
        except (NotImplementedError, TypeError):  # before torch 2.8
            pass
    return a.to(dtype) @ b.to(dtype)


def _stores_all_scores(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.device.type not in ("cpu", "cuda"):
        return True
    return torch._fused_sdp_choice(query, key, value) == SDPBackend.MATH.value
