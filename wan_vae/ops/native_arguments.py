"""What the compiled kernels are called with."""

import ctypes

import torch
from torch import Tensor

from wan_vae.ops.rehearsal import device_of


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is (B, C, T, H, W) on a CPU, the channels of a pixel next to each other in memory."""
    return device_of(x).type == "cpu" and x.dim() == 5 and (x.stride(1) == 1 or x.shape[1] == 1)


def is_like(x: Tensor, other: Tensor) -> bool:
    """Whether a kernel that takes `other` can take `x` beside it."""
    return is_channels_last(x) and x.dtype == other.dtype and x.shape == other.shape


def data(x: Tensor | None) -> ctypes.c_void_p | None:
    """Return where the values are, null if there are none."""
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def five(numbers: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """Return sizes or strides of (B, C, T, H, W)."""
    return (ctypes.c_int64 * 5)(*numbers)


def threads() -> ctypes.c_int:
    """Return how many threads PyTorch computes with."""
    return ctypes.c_int(torch.get_num_threads())
