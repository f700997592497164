"""Peak memory and operation counts of a computation, found by a dry run on the meta device.

While a `MemoryEstimator` is active, meta tensors stand for tensors on the device that it names. Operations that
dispatch by device call `estimator_of` and, if there is an estimator, only report the memory that they would take.

PyTorch's kernels for the meta device import its compiler when they are first called, which takes longer than many
passes of a VAE there. `on_meta` replaces them for the operations of Wan's networks.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from functools import reduce
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten


def on_meta(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation (an `OpOverload`) on meta tensors, without PyTorch's compiler if possible."""
    function = _META_FUNCTIONS.get(operation)
    result = function(*args, **kwargs) if function is not None else None
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
    """Return the dimensions of `x`, from the longest stride to the shortest."""
    strides = x.stride()
    return tuple(sorted(range(x.dim()), key=lambda dim: -strides[dim]))


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
    summed = {each % x.dim() for each in dim}
    sizes = [1 if each in summed else size for each, size in enumerate(x.shape)]
    shape = sizes if keepdim else [size for each, size in enumerate(sizes) if each not in summed]
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor | None:
    stride, padding, dilation, transposed = options[:4]
    if transposed or set(dilation) != {1}:
        return None
    dims = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    size = [(length + 2 * zeros - taps) // step + 1 for length, taps, step, zeros in dims]
    return torch.empty((x.shape[0], weight.shape[0], *size), dtype=x.dtype, device="meta")


def _mm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device="meta")


def _addmm(bias: Tensor, x: Tensor, weight: Tensor, **options: Any) -> Tensor | None:
    return None if options else _mm(x, weight)


_META_FUNCTIONS: dict[Any, Callable[..., Tensor | None]] = {
    _aten.convolution.default: _convolution,
    _aten.addmm.default: _addmm,
    _aten.mm.default: _mm,
    _aten.cat.default: _cat,
    _aten.repeat.default: _repeat,
    _aten.stack.default: _stack,
    _aten.sum.dim_IntList: _sum,
    **dict.fromkeys((_aten.add_.Tensor, _aten.div_.Tensor, _aten.mul_.Tensor, _aten.clamp_.default), _in_place),
    **dict.fromkeys((_aten.add.Tensor, _aten.mul.Tensor, _aten.pow.Tensor_Scalar), _pointwise),
    **dict.fromkeys((_aten.clamp_min.default, _aten.clamp.default, _aten.rsqrt.default), _pointwise),
}


T = TypeVar("T")

# The first pass finds an empty temporal cache, the second fills it, the third is like all later ones.
_DISTINCT_PASSES = 3
# Bytes: glibc keeps freed blocks of up to this size on its heap.
_MAX_HEAP_BLOCK = 2**25
# Fragmentation of that heap: bytes lost per byte, and the size up to which it grows. Measured with glibc.
_FRAGMENTATION = 0.6
_MAX_FRAGMENTED = 3 * 2**23
# Bytes: the system maps large regions in huge pages.
_PAGE = 2**21
# oneDNN stores a weight in two other orders.
_WEIGHT_COPIES = 2

_current: ContextVar["MemoryEstimator | None"] = ContextVar("memory_estimator", default=None)


class Block(Protocol):
    """A block of address space that an allocator hands out in parts (`workspace.Region`)."""

    size: int

    def free(self, start: int, stop: int) -> None:
        """Return the bytes from `start` up to `stop`."""


class Allocator(Protocol):
    """An allocator whose memory is estimated (`Workspace`)."""

    def allocate(self, size: int, *, persistent: bool = False) -> tuple[Block, int, int]:
        """Return a block and the range of at least `size` bytes in it."""


def estimator_of(x: Tensor) -> "MemoryEstimator | None":
    """Return the active estimator if `x` is a meta tensor that stands for a tensor on its device, otherwise None."""
    return _current.get() if x.device.type == "meta" else None


def device_of(x: Tensor) -> torch.device:
    """Return the device of `x`, or the device that it stands for."""
    estimator = estimator_of(x)
    return x.device if estimator is None else estimator.device


def representative_passes(passes: Iterable[T], x: Tensor) -> Iterator[T]:
    """Yield all passes over `x`; for an estimate, only the first few, which reach the peak of any number of passes."""
    return islice(passes, None if estimator_of(x) is None else _DISTINCT_PASSES)


class MemoryEstimator(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory and the operations of a computation on the meta device.

    On a CPU it models the pages that workspaces have touched, and glibc's heap, which keep freed memory.

    Args:
        device: The device that meta tensors stand for.
        present: Tensors that exist before the computation. Their memory is not counted.

    Attributes:
        allocated: Bytes in use, with the freed memory that allocators keep.
        peak: The largest value of `allocated` so far.
        operations: Multiplications and additions of convolutions and attention so far.
    """

    def __init__(self, device: torch.device, present: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.allocated = 0
        self.peak = 0
        self.operations = 0
        # Storages that need no tracking: they are counted already.
        self._tracked = {tensor.untyped_storage()._cdata for tensor in present}
        self._touched: weakref.WeakKeyDictionary[Block, list[tuple[int, int]]] = weakref.WeakKeyDictionary()
        self._contexts = ExitStack()
        self._paused = False
        self._heap_size = 0
        self._heap_in_use = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import the compiler, which takes seconds, and nothing is compiled here.
        return False

    def __enter__(self) -> "MemoryEstimator":
        token = _current.set(self)
        self._contexts.callback(_current.reset, token)
        # In inference mode, convolutions among others are dispatched under another name.
        self._contexts.enter_context(torch.inference_mode(False))
        self._contexts.enter_context(torch.no_grad())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._contexts.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = on_meta(func, args, kwargs or {})
        if func is torch.ops.aten.convolution.default:
            self._count_pytorch_convolution(args[0], args[1], result)
        if not self._paused:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                    self._track(tensor)
        return result

    def add(self, size: int) -> None:
        """Count `size` bytes more from now on."""
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def allocate(self, workspace: Allocator, shape: tuple[int, ...], like: Tensor, *, persistent: bool) -> Tensor:
        """Allocate a tensor from a workspace. Its block is freed with the last view."""
        if self.device.type != "cpu" or math.prod(shape) == 0:
            return torch.empty(shape, dtype=like.dtype, device="meta")
        tensor = self._untracked(shape, like)
        region, start, stop = workspace.allocate(tensor.untyped_storage().nbytes(), persistent=persistent)
        self._on_free(tensor, region.free, start, stop)
        self._touch_pages(region, start, stop)
        return tensor

    def allocate_pages(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Allocate a tensor in a mapping for it alone, which is unmapped with the last view."""
        tensor = self._untracked(shape, like)
        size = tensor.untyped_storage().nbytes()
        self._on_free(tensor, self.add, -size)
        self.add(size)
        return tensor

    def count_convolution(self, weight: Tensor, out: Tensor) -> Tensor:
        """Count the operations of a convolution into `out` that needs no memory outside of its workspace."""
        self.operations += 2 * out.numel() * weight[0].numel()
        return out

    def count_weight_copies(self, weight: Tensor) -> None:
        """Count the reordered copies of a weight that oneDNN holds during a convolution."""
        if self.device.type == "cpu":
            self._malloc(_WEIGHT_COPIES * weight.nbytes)
            self._free(_WEIGHT_COPIES * weight.nbytes)

    def count_scratch(self, size: int) -> None:
        """Count memory that an operation on a GPU takes in addition to its operands, and frees at its end."""
        if self.device.type != "cpu":
            self.add(size)
            self.allocated -= size

    def count_attention(self, query: Tensor, key: Tensor) -> Tensor:
        """Count attention whose matrix of scores is never stored, and return an uninitialized result."""
        self.operations += 4 * query.shape[0] * query.shape[2] * key.shape[2] * query.shape[3]
        return query.new_empty(query.shape)

    def _count_pytorch_convolution(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        self.operations += 2 * result.numel() * weight[0].numel()
        # In bfloat16 oneDNN convolves directly. Otherwise PyTorch copies the input, then stores the im2col matrix.
        if self.device.type == "cpu" and x.dim() == 5 and x.dtype != torch.bfloat16:
            matrix = result.shape[0] * math.prod(result.shape[2:]) * math.prod(weight.shape[1:])
            sizes = [values * x.dtype.itemsize for values in (x.numel(), matrix)]
            for size in sizes:
                self._malloc(size)
            for size in sizes:
                self._free(size)

    def _untracked(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        self._paused = True
        try:
            return torch.empty(shape, dtype=like.dtype, device="meta", memory_format=torch.channels_last_3d)
        finally:
            self._paused = False

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._tracked:
            self._on_free(tensor, self._free, storage.nbytes())
            self._malloc(storage.nbytes())

    def _on_free(self, tensor: Tensor, free: Callable[..., None], *args: int) -> None:
        """Track the storage of `tensor`, and call `free` at its end."""
        storage = tensor.untyped_storage()
        self._tracked.add(storage._cdata)
        weakref.finalize(storage, self._tracked.discard, storage._cdata).atexit = False
        weakref.finalize(storage, free, *args).atexit = False

    def _malloc(self, size: int) -> None:
        if self._uses_heap(size):
            self._heap_in_use += size
            size = max(0, self._heap_in_use - self._heap_size)
            self._heap_size += size
            fragmented = min(self._heap_size, _MAX_FRAGMENTED) - (self._heap_size - size)
            size += int(_FRAGMENTATION * max(0, fragmented))
        self.add(size)

    def _free(self, size: int) -> None:
        if self._uses_heap(size):
            self._heap_in_use -= size
        else:
            self.allocated -= size

    def _uses_heap(self, size: int) -> bool:
        return self.device.type == "cpu" and size <= _MAX_HEAP_BLOCK

    def _touch_pages(self, region: Block, start: int, stop: int) -> None:
        if region not in self._touched:
            self._touched[region] = []
            # The list outlives the entry of the dictionary, and has all pages when the region is unmapped.
            weakref.finalize(region, self._unmap, self._touched[region]).atexit = False
        ranges = self._touched[region]
        start, stop = start // _PAGE * _PAGE, min(-(-stop // _PAGE) * _PAGE, region.size)
        before = _total(ranges)
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*ranges, (start, stop)]):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        ranges[:] = merged
        self.add(_total(ranges) - before)

    def _unmap(self, ranges: list[tuple[int, int]]) -> None:
        self.allocated -= _total(ranges)


def _total(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
