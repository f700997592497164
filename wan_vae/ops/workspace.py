"""Caching host allocator for the large intermediate tensors of a pass through the network.

Fresh CPU memory is slow: the kernel zeroes each page at its first touch, which takes up to a third of the time of a
pass, and a C library returns large blocks to the kernel as soon as they are freed. Three layers avoid that:

- `Region`: one memory mapping, from which blocks are allocated first-fit.
- `Workspace`: the regions of one clip. Its tensors free their blocks when the last view of them is gone.
- The cache: free regions of finished or idle workspaces, for the next workspace of this process. They are marked
  `MADV_FREE`: the system may reclaim their pages at any time, so they count as available memory, though tools still
  show them as memory of this process.

The memory of a GPU is cached by PyTorch, and this module leaves it alone.
"""

import ctypes
import math
import mmap
import os
import weakref
from contextlib import suppress
from functools import cached_property
from threading import RLock
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.ops import needs_plain_ops
from wan_vae.ops.cuda_graph import drop_idle
from wan_vae.ops.memory_estimator import estimator_of

# Bytes: blocks share no cache line, and start where vector loads are aligned.
_ALIGNMENT = 64
# Bytes of address space, of which only touched pages take memory. Fewer regions leave fewer unused gaps.
_MIN_REGION_BYTES = 2**28
# Bytes. A pass that needs more takes so long that fresh pages hardly matter.
_MAX_CACHED_BYTES = 2**31


class Region:
    """A memory mapping from which blocks are allocated. It is mapped when its address is first read.

    Attributes:
        size: In bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._gaps = [(0, size)]
        self._freed: list[tuple[int, int]] = []

    @cached_property
    def address(self) -> int:
        """Address of the first byte."""
        return torch.frombuffer(self._pages, dtype=torch.uint8).data_ptr()

    @cached_property
    def _pages(self) -> mmap.mmap:
        return _map_pages(self.size)

    @property
    def is_mapped(self) -> bool:
        """Whether the region takes memory: an estimate of memory allocates blocks and never maps them."""
        return "_pages" in vars(self)

    @property
    def allocated(self) -> int:
        """Bytes of all allocated blocks."""
        return self.size - sum(stop - start for start, stop in [*self._gaps, *self._freed])

    def make_reclaimable(self) -> bool:
        """Let the system reclaim the pages when it needs them. Their content is lost.

        Returns:
            Whether the system supports that.
        """
        if not hasattr(mmap, "MADV_FREE"):
            return False
        try:
            self._pages.madvise(mmap.MADV_FREE)
        except OSError:  # locked memory, as under mlockall
            return False
        return True

    def allocate(self, size: int) -> int | None:
        """Return the offset of a new block of `size` bytes in the first gap that fits, or None if there is none."""
        self._coalesce()
        # Measured with clips: best-fit touched up to half as much memory again.
        gap = next(((start, stop) for start, stop in self._gaps if stop - start >= size), None)
        if gap is None:
            return None
        self._gaps.remove(gap)
        if gap[1] - gap[0] > size:
            self._gaps.append((gap[0] + size, gap[1]))
        return gap[0]

    def free(self, start: int, stop: int) -> None:
        """Free a block.

        Garbage collection calls this at any time in any thread, even during `allocate`: it must not change the gaps.
        """
        self._freed.append((start, stop))

    def _coalesce(self) -> None:
        while self._freed:
            self._gaps.append(self._freed.pop())
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(self._gaps):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        self._gaps = joined


def _map_pages(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    # A forked process must not write to the same pages.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Linux gives huge pages, of which the first touch of a region fills 512 times fewer.
    with suppress(OSError, AttributeError):  # a hint: some systems are built without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


# Reentrant, because garbage collection may finalize a workspace while the lock is held.
_lock = RLock()
# By whether they held persistent tensors: the next workspace then fills the same pages and touches no others.
_cache: dict[bool, list[Region]] = {False: [], True: []}


def _renew_lock() -> None:
    global _lock
    _lock = RLock()


# The thread that holds the lock does not exist in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def cache_free_regions(regions: list[Region], *, persistent: bool) -> None:
    """Move the free regions of a workspace from its list to the cache, up to `_MAX_CACHED_BYTES` in all."""
    with _lock:
        for region in [region for region in regions if region.is_mapped and region.allocated == 0]:
            if _cached_bytes() + region.size <= _MAX_CACHED_BYTES and region.make_reclaimable():
                regions.remove(region)
                _cache[persistent].append(region)


def take_cached_region(size: int, *, persistent: bool) -> Region | None:
    """Remove a region of at least `size` bytes from the cache. If there is none, unmap the smaller ones."""
    with _lock:
        cached = _cache[persistent]
        region = next((region for region in cached if region.size >= size), None)
        if region is None:
            cached.clear()
        else:
            cached.remove(region)
        return region


def empty_cache() -> None:
    """Return the cached CPU memory to the system at once, and drop the CUDA graphs that no stream uses.

    Without this, the system reclaims the former when it needs it, and the latter take 1 GiB at most.
    """
    drop_idle()
    with _lock:
        for cached in _cache.values():
            cached.clear()


def _cached_bytes() -> int:
    return sum(region.size for cached in _cache.values() for region in cached)


class MemoryStats(NamedTuple):
    """Bytes of a workspace's regions, of its blocks in use, and of the free regions in this process's cache."""

    reserved: int
    allocated: int
    cached: int


class Workspace:
    """Allocates tensors whose memory is reused as soon as the last view of them is gone.

    Args:
        recycle: Whether free memory goes to the process's cache when the workspace is trimmed or dropped. False returns
            it to the system, for a workspace inside a call that is about to allocate more elsewhere.
    """

    def __init__(self, *, recycle: bool = True) -> None:
        # By whether they hold persistent tensors, which would leave gaps between short-lived ones.
        self._regions: dict[bool, list[Region]] = {False: [], True: []}
        self._recycle = recycle
        self._has_finalizer = False

    def empty(self, shape: tuple[int, ...], like: Tensor, *, persistent: bool = False) -> Tensor:
        """Return an uninitialized channels-last tensor (B, C, T, H, W), of the dtype and on the device of `like`.

        While gradients are recorded, it is an ordinary new tensor.

        Args:
            shape: (B, C, T, H, W).
            like: Gives dtype and device.
            persistent: Whether the tensor outlives the pass; its memory then comes from regions of its kind.
        """
        if needs_plain_ops():
            return like.new_empty(shape)
        estimator = estimator_of(like)
        if estimator is not None:
            return estimator.allocate(self, shape, like, persistent=persistent)
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
        return _channels_last(self._values(math.prod(shape), like.dtype, persistent), shape)

    @staticmethod
    def empty_persistent(shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a tensor as from `empty` in a mapping for it alone, for buffers that every pass overwrites."""
        estimator = estimator_of(like)
        if estimator is not None:
            return estimator.allocate_pages(shape, like)
        with torch.inference_mode(False):  # so that it can be overwritten in any mode
            if like.device.type != "cpu":
                return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
            pages = _map_pages(math.prod(shape) * like.dtype.itemsize)
            return _channels_last(torch.frombuffer(pages, dtype=like.dtype), shape)

    def allocate(self, size: int, *, persistent: bool = False, mapped: bool = False) -> tuple[Region, int, int]:
        """Allocate a block of `size` bytes.

        Args:
            size: In bytes.
            persistent: Whether the block outlives the pass.
            mapped: Whether it will be written to. An estimate of memory never does, and takes no cached region.

        Returns:
            The region, and the offsets of the block's start and end.
        """
        size, regions = -(-size // _ALIGNMENT) * _ALIGNMENT, self._regions[persistent]
        for region in regions:
            start = region.allocate(size)
            if start is not None:
                return region, start, start + size
        new = take_cached_region(size, persistent=persistent) if mapped else None
        if new is None:
            # One region replaces the free ones that are too small: the total stays near what is in use at a time.
            free = [region for region in regions if region.allocated == 0]
            regions[:] = [region for region in regions if region not in free]
            total = sum(region.size for region in free)
            del free
            new = Region(max(size, total, _MIN_REGION_BYTES))
        regions.append(new)
        start = new.allocate(size)
        assert start == 0
        return new, 0, size

    def trim(self) -> None:
        """Move free regions to the cache, until this workspace allocates again."""
        if self._recycle:
            _cache_all(self._regions)

    def stats(self) -> MemoryStats:
        """Return the bytes that this workspace reserves and has allocated, and the bytes in the process's cache."""
        regions = [region for some in self._regions.values() for region in some]
        with _lock:
            cached = _cached_bytes()
        return MemoryStats(sum(x.size for x in regions), sum(x.allocated for x in regions), cached)

    def _values(self, count: int, dtype: torch.dtype, persistent: bool) -> Tensor:
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        region, start, stop = self.allocate(size, persistent=persistent, mapped=True)
        if self._recycle and not self._has_finalizer:
            # Not in the constructor, because torch.compile cannot trace it.
            weakref.finalize(self, _cache_all, self._regions).atexit = False
            self._has_finalizer = True
        # The tensor keeps this buffer alive, and the end of the buffer frees the block.
        block = (ctypes.c_char * size).from_address(region.address + start)
        weakref.finalize(block, region.free, start, stop).atexit = False
        return torch.frombuffer(block, dtype=dtype)


def _cache_all(regions: dict[bool, list[Region]]) -> None:
    for persistent, some in regions.items():
        cache_free_regions(some, persistent=persistent)


def _channels_last(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    batch, channels, frames, height, width = shape
    return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)
