"""What operations return on the meta device, without PyTorch's compiler.

PyTorch's own kernels for that device import its compiler when they are first called, which takes longer than many of a
VAE's passes there. Here are the operations that Wan's networks are made of.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

_aten = torch.ops.aten


def on_meta(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what an operation of PyTorch's (an `OpOverload`) returns for tensors of the meta device."""
    way = _WAYS.get(operation)
    result = way(*args, **kwargs) if way is not None else None
    return operation(*args, **kwargs) if result is None else result


def _pointwise(*args: Tensor | float, **options: Any) -> Tensor | None:
    tensors = [x for x in args if isinstance(x, Tensor)]
    shape = np.broadcast_shapes(*(x.shape for x in tensors))
    orders = {_order(x) for x in tensors if x.shape == shape}
    if options or len(orders) != 1 or not all(x.is_floating_point() and x.dim() > 0 for x in tensors):
        return None
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    return torch.empty_permuted(shape, orders.pop(), dtype=dtype, device="meta")


def _order(x: Tensor) -> tuple[int, ...]:
    """The dimensions of `x` from the longest stride to the shortest."""
    strides = x.stride()
    return tuple(sorted(range(x.dim()), key=lambda place: -strides[place]))


def _in_place(x: Tensor, *others: Any, **options: Any) -> Tensor:
    return x


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(x.shape[dim] for x in tensors)
    stored = torch.channels_last_3d if all(_is_channels_last(x) for x in tensors) else torch.contiguous_format
    return torch.empty(shape, dtype=tensors[0].dtype, device="meta", memory_format=stored)


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return torch.empty(shape, dtype=tensors[0].dtype, device="meta")


def _repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    shape = [1] * (len(times) - x.dim()) + list(x.shape)
    repeated = [size * count for size, count in zip(shape, times, strict=True)]
    return torch.empty(repeated, dtype=x.dtype, device="meta")


def _is_channels_last(x: Tensor) -> bool:
    return x.numel() > 0 and x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


def _sum(x: Tensor, dim: Sequence[int], keepdim: bool = False, **options: Any) -> Tensor | None:
    if options:
        return None
    summed = {place % x.dim() for place in dim}
    if keepdim:
        shape = [1 if place in summed else size for place, size in enumerate(x.shape)]
    else:
        shape = [size for place, size in enumerate(x.shape) if place not in summed]
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *rest: Any,
) -> Tensor | None:
    if transposed or set(dilation) != {1}:
        return None
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    size = [(length + 2 * zeros - taps) // step + 1 for length, taps, step, zeros in sizes]
    return torch.empty((x.shape[0], weight.shape[0], *size), dtype=x.dtype, device="meta")


_WAYS: dict[Any, Callable[..., Tensor | None]] = {
    _aten.convolution.default: _convolution,
    _aten.cat.default: _cat,
    _aten.repeat.default: _repeat,
    _aten.stack.default: _stack,
    _aten.sum.dim_IntList: _sum,
    **dict.fromkeys((_aten.add_.Tensor, _aten.div_.Tensor, _aten.mul_.Tensor, _aten.clamp_.default), _in_place),
    **dict.fromkeys(
        (
            _aten.add.Tensor,
            _aten.mul.Tensor,
            _aten.pow.Tensor_Scalar,
            _aten.clamp_min.default,
            _aten.clamp.default,
            _aten.rsqrt.default,
        ),
        _pointwise,
    ),
}
