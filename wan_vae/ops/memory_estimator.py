"""What a computation would take on a device, found on the meta device, where nothing is computed.

While a `MemoryEstimator` is active, tensors on the meta device stand for tensors on the device that it names.
Operations that dispatch by device ask `estimator_of`, and then only account for the memory they would take there.

What operations return on the meta device, without PyTorch's compiler.

PyTorch's own kernels for that device import its compiler when they are first called, which takes longer than many of a
VAE's passes there. Here are the operations that Wan's networks are made of.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from wan_vae.ops.workspace import Region, Workspace

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


T = TypeVar("T")

# The first one finds nothing remembered, the second remembers as much as there will be, the third has both.
_DIFFERENT_PASSES = 3
# Bytes.
_SMALL = 2**25
# What gaps between small things add to them, as measured with glibc, and up to how much of them.
_GAPS = 0.6
_LARGEST_GAPS = 3 * 2**23
_PAGE = 2**21
# oneDNN has weights in two other orders.
_COPIES = 2

_current: ContextVar["MemoryEstimator | None"] = ContextVar("rehearsal", default=None)


def estimator_of(x: Tensor) -> "MemoryEstimator | None":
    """Return the rehearsal in which `x` stands for a tensor of some device, or None where it is what it is."""
    return _current.get() if x.device.type == "meta" else None


def device_of(x: Tensor) -> torch.device:
    """Return the device of `x`, or the one that it stands for."""
    estimator = estimator_of(x)
    return x.device if estimator is None else estimator.device


def typical(passes: Iterable[T], x: Tensor) -> Iterator[T]:
    """Yield of passes like one another, all that `x` goes through; in a rehearsal, as many as take all memory."""
    return islice(passes, None if estimator_of(x) is None else _DIFFERENT_PASSES)


class MemoryEstimator(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory that is held, and counts operations.

    Args:
        device: What tensors of the meta device stand for.
        present: Tensors that are there before, with their memory.

    Attributes:
        held: Bytes that are held now. On a CPU, with all that a workspace ever lent and a C library keeps: they give
            nothing back.
        peak: The most that were held at one time.
        operations: Multiplications and additions of convolutions and attention so far.
    """

    def __init__(self, device: torch.device, present: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.held = 0
        self.peak = 0
        self.operations = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in present}
        self._touched: weakref.WeakKeyDictionary[Region, list[tuple[int, int]]] = weakref.WeakKeyDictionary()
        self._entered = ExitStack()
        self._lending = False
        self._kept = 0
        self._kept_in_use = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # That would import the compiler, which takes seconds, and nothing is compiled here.
        return False

    def hold(self, size: int) -> None:
        """Hold so many bytes more from now on."""
        self.held += size
        self.peak = max(self.peak, self.held)

    def __enter__(self) -> "MemoryEstimator":
        token = _current.set(self)
        self._entered.callback(_current.reset, token)
        # In inference mode a convolution, among others, arrives under another name.
        self._entered.enter_context(torch.inference_mode(False))
        self._entered.enter_context(torch.no_grad())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._entered.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = on_meta(func, args, kwargs or {})
        if func is torch.ops.aten.convolution.default:
            self._convolved_by_pytorch(args[0], args[1], result)
        if not self._lending:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                    self._follow(tensor)
        return result

    def lend(self, workspace: "Workspace", shape: tuple[int, ...], like: Tensor, *, persistent: bool) -> Tensor:
        """Take a tensor from a workspace, and bring it back when it is gone."""
        if self.device.type != "cpu" or math.prod(shape) == 0:
            return torch.empty(shape, dtype=like.dtype, device="meta")
        tensor = self._unfollowed(shape, like)
        storage = tensor.untyped_storage()
        region, start, stop = workspace.place(storage.nbytes(), persistent=persistent)
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._bring_back, storage._cdata, region, start, stop).atexit = False
        self._touch(region, start, stop)
        return tensor

    def map(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Take a tensor whose memory goes straight back when it is gone."""
        tensor = self._unfollowed(shape, like)
        storage = tensor.untyped_storage()
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._unmap, storage._cdata, storage.nbytes()).atexit = False
        self.hold(storage.nbytes())
        return tensor

    def convolve(self, weight: Tensor, out: Tensor) -> Tensor:
        """Take what a convolution into `out` takes beside it and its workspace."""
        self.operations += 2 * out.numel() * weight[0].numel()
        return out

    def reorder(self, weight: Tensor) -> None:
        """Take what oneDNN takes for a weight, for as long as it convolves."""
        if self.device.type == "cpu":
            self._take(_COPIES * weight.nbytes)
            self._give(_COPIES * weight.nbytes)

    def attend(self, query: Tensor, key: Tensor) -> Tensor:
        """Take what attention takes that does not spell out all pairs."""
        self.operations += 4 * query.shape[0] * query.shape[2] * key.shape[2] * query.shape[3]
        return query.new_empty(query.shape)

    def _convolved_by_pytorch(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        self.operations += 2 * result.numel() * weight[0].numel()
        # In bfloat16 oneDNN does it in place. Otherwise PyTorch spells out what each output pixel sees.
        if self.device.type == "cpu" and x.dim() == 5 and x.dtype != torch.bfloat16:
            taps = math.prod(weight.shape[1:])
            for values in (x.numel(), result.shape[0] * math.prod(result.shape[2:]) * taps):
                self._take(values * x.dtype.itemsize)
            for values in (x.numel(), result.shape[0] * math.prod(result.shape[2:]) * taps):
                self._give(values * x.dtype.itemsize)

    def _unfollowed(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        self._lending = True
        try:
            return torch.empty(shape, dtype=like.dtype, device="meta", memory_format=torch.channels_last_3d)
        finally:
            self._lending = False

    def _unmap(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._forget, storage._cdata, size).atexit = False
        self._take(size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._give(size)

    def _take(self, size: int) -> None:
        if self._is_kept(size):
            self._kept_in_use += size
            size = max(0, self._kept_in_use - self._kept)
            self._kept += size
            size += int(_GAPS * max(0, min(self._kept, _LARGEST_GAPS) - (self._kept - size)))
        self.hold(size)

    def _give(self, size: int) -> None:
        if self._is_kept(size):
            self._kept_in_use -= size
        else:
            self.held -= size

    def _is_kept(self, size: int) -> bool:
        # A C library keeps the memory of what is small for what comes next; glibc's bound grows to this.
        return self.device.type == "cpu" and size <= _SMALL

    def _bring_back(self, key: int, region: "Region", start: int, stop: int) -> None:
        self._known.discard(key)
        region.give_back(start, stop)

    def _touch(self, region: "Region", start: int, stop: int) -> None:
        if region not in self._touched:
            self._touched[region] = []
            # What is left to the list is what the region had when it was dropped.
            weakref.finalize(region, self._drop, self._touched[region]).atexit = False
        spans = self._touched[region]
        # The system gives large memory in pages of this size.
        start, stop = start // _PAGE * _PAGE, min(-(-stop // _PAGE) * _PAGE, region.size)
        before = sum(end - begin for begin, end in spans)
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*spans, (start, stop)]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        spans[:] = merged
        self.hold(sum(end - begin for begin, end in spans) - before)

    def _drop(self, spans: list[tuple[int, int]]) -> None:
        self.held -= sum(end - begin for begin, end in spans)
