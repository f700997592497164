"""Attention among the pixels of a frame, with memory linear in the number of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from wan_vae.ops import needs_plain_ops
from wan_vae.ops.memory_estimator import estimator_of

# Bytes of the scores of the queries that are computed together.
_MAX_SCORE_BYTES = 2**26


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return `softmax(query key^T / sqrt(C)) value` of (N, 1, queries, C) and (N, 1, keys, C).

    Where PyTorch has no fused kernel and would store the scores of all pairs, a few queries are computed at a time.
    """
    estimator = estimator_of(query)
    if estimator is not None:
        return estimator.count_attention(query, key)
    if needs_plain_ops() or not _stores_all_scores(query, key, value):
        return F.scaled_dot_product_attention(query, key, value)
    rows = max(1, _MAX_SCORE_BYTES // (key.shape[2] * query.dtype.itemsize))
    attended = torch.empty_like(query)
    for frame in range(query.shape[0]):
        one = slice(frame, frame + 1)
        for start in range(0, query.shape[2], rows):
            some = slice(start, start + rows)
            attended[one, :, some] = F.scaled_dot_product_attention(query[one, :, some], key[one], value[one])
    return attended


def _stores_all_scores(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.device.type not in ("cpu", "cuda"):
        return True
    return torch._fused_sdp_choice(query, key, value) == SDPBackend.MATH.value
