"""What the compiled kernels are called with."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from wan_vae.ops.rehearsal import device_of


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is (B, C, T, H, W) on a CPU, the channels of a pixel next to each other in memory."""
    return device_of(x).type == "cpu" and x.dim() == 5 and (x.stride(1) == 1 or x.shape[1] == 1)


def is_like(x: Tensor, other: Tensor) -> bool:
    """Whether a kernel that takes `other` can take `x` beside it."""
    return is_channels_last(x) and x.dtype == other.dtype and x.shape == other.shape


def wide_bias(bias: Tensor | None, channels: int) -> Tensor | None:
    """Return a bias (C,) in float32, if there is one."""
    if bias is None:
        return None
    assert bias.shape == (channels,), (bias.shape, channels)
    return bias.detach().to(torch.float32).contiguous()


def are_alike(pieces: Sequence[Tensor]) -> bool:
    """Whether pieces (B, C, n, H, W) of one tensor differ in n alone, and in where their frames are."""
    x = pieces[0]
    return all(
        is_channels_last(piece)
        and (piece.dtype, piece[:, :, :0].shape) == (x.dtype, x[:, :, :0].shape)
        and all(piece.stride(dim) == x.stride(dim) for dim in (3, 4) if x.shape[dim] > 1)
        for piece in pieces
    )


def frames_of(pieces: Sequence[Tensor], before: int) -> "ctypes.Array[ctypes.c_void_p]":
    """Return where the frames of each clip are, after `before` nulls, which stand for frames of zeros."""
    places: list[int | None] = []
    for clip in range(pieces[0].shape[0]):
        places += [None] * before
        for piece in pieces:
            start, step = piece.data_ptr() + clip * piece.stride(0) * piece.itemsize, piece.stride(2) * piece.itemsize
            places += [start + frame * step for frame in range(piece.shape[2])]
    return (ctypes.c_void_p * len(places))(*places)


def data(x: Tensor | None) -> ctypes.c_void_p | None:
    """Return where the values are, null if there are none."""
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def five(numbers: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """Return sizes or strides of (B, C, T, H, W)."""
    return (ctypes.c_int64 * 5)(*numbers)


def threads() -> ctypes.c_int:
    """Return how many threads PyTorch computes with."""
    return ctypes.c_int(torch.get_num_threads())
