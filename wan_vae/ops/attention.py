"""Attention among the pixels of a frame, in memory that does not grow with the square of their number."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.memory_estimator import estimator_of

# Of the scores of some queries with all keys, which are held at once.
_BYTES_OF_SCORES = 2**26


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return `softmax(query key^T / sqrt(C)) value` of (N, 1, queries, C) and (N, 1, keys, C).

    Where PyTorch has no kernel that fuses the steps and would spell out all pairs, it is asked for a few queries at a
    time: each of them has a softmax of its own, so that this changes nothing.
    """
    estimator = estimator_of(query)
    if estimator is not None:
        return estimator.attend(query, key)
    if needs_plain_ops() or not _spells_out_pairs(query, key, value):
        return F.scaled_dot_product_attention(query, key, value)
    rows = max(1, _BYTES_OF_SCORES // (key.shape[2] * query.dtype.itemsize))
    attended = torch.empty_like(query)
    for frame in range(query.shape[0]):
        one = slice(frame, frame + 1)
        for start in range(0, query.shape[2], rows):
            some = slice(start, start + rows)
            attended[one, :, some] = F.scaled_dot_product_attention(query[one, :, some], key[one], value[one])
    return attended


def _spells_out_pairs(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.device.type not in ("cpu", "cuda"):
        return True
    return torch._fused_sdp_choice(query, key, value) == SDPBackend.MATH.value
