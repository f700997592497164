"""How kernels find the pixels of tensors (B, C, T, H, W) whose channels lie side by side and whose pixels lie anywhere.

Offsets of pixels are 64 bits wide: a clip of 81 frames in 720p with 96 channels has more than 2^31 values.
"""

from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from wan_vae.ops.triton_jit import jit

Four = tuple[int, int, int, int]


class Walk(NamedTuple):
    """All pixels of some tensors of one shape, as four nested loops; the innermost is the longest run there is.

    Attributes:
        sizes: Of the loops, outermost first.
        strides: For each tensor, how far one turn of each loop goes.
    """

    sizes: Four
    strides: list[Four]


def pixel_strides(x: Tensor) -> Four:
    """Return the strides of B, T, H and W, with zero where there is nothing to step to.

    PyTorch leaves the stride of a dimension of size 1 open, and kernels are compiled anew for other kinds of strides.
    """
    batch, _, frame, row, column = (stride if size > 1 else 0 for stride, size in zip(x.stride(), x.shape, strict=True))
    return batch, frame, row, column


def channels_are_side_by_side(x: Tensor) -> bool:
    """Whether the channels of a pixel lie one after the other, as the kernels take for granted."""
    return x.stride(1) == 1 or x.shape[1] == 1


def walk(*tensors: Tensor) -> Walk:
    """Return the fewest loops over the pixels of tensors (B, C, T, H, W), for which one order serves all of them."""
    shape = tensors[0].shape
    assert all(x.shape == shape for x in tensors)
    strides = [pixel_strides(x) for x in tensors]
    loops: list[tuple[int, tuple[int, ...]]] = []
    for dimension, size in enumerate((shape[0], *shape[2:])):
        steps = tuple(own[dimension] for own in strides)
        if size == 1:
            continue
        if loops and all(outer == size * inner for outer, inner in zip(loops[-1][1], steps, strict=True)):
            loops[-1] = (loops[-1][0] * size, steps)
        else:
            loops.append((size, steps))
    loops = [(1, (0,) * len(tensors))] * (4 - len(loops)) + loops
    first, second, third, fourth = (size for size, _ in loops)
    return Walk((first, second, third, fourth), [_four([steps[i] for _, steps in loops]) for i in range(len(tensors))])


def _four(values: list[int]) -> Four:
    first, second, third, fourth = values
    return first, second, third, fourth


@jit()
def outer_offset(
    turn: tl.tensor, size1: tl.tensor, size2: tl.tensor, stride0: tl.tensor, stride1: tl.tensor, stride2: tl.tensor
) -> tl.tensor:
    """Return where a turn of the three outer loops of a `Walk` begins."""
    # Every thread of a program computes this; divisions of 64 bits would cost as much as the rest of a kernel.
    rest = turn // size2
    offset = (rest // size1).to(tl.int64) * stride0 + (rest % size1).to(tl.int64) * stride1
    return offset + (turn % size2).to(tl.int64) * stride2
