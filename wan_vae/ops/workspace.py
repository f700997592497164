"""Memory for the large tensors of a pass, used again for the next one.

Memory straight from the kernel, of which any parts are lent.

Memory that no workspace needs at present, for the next one that does.

To fill fresh pages takes up to a third of a call's time, and on a virtual machine that has been idle longer than the
call. Here they wait for the next pass, of this clip or another. The system may take them whenever it wants: they count
as available, though tools still show them as this process's.
"""

import ctypes
import math
import mmap
import os
import weakref
from functools import cached_property
from threading import RLock

import torch
from torch import Tensor

from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.memory_estimator import estimator_of


class Region:
    """Memory of which any parts are lent, side by side.

    Attributes:
        size: In bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._gaps = [(0, size)]
        self._given_back: list[tuple[int, int]] = []

    @cached_property
    def address(self) -> int:
        """Where it begins. It takes no memory before it is asked for this."""
        return torch.frombuffer(self._pages, dtype=torch.uint8).data_ptr()

    @cached_property
    def _pages(self) -> mmap.mmap:
        return _mapped(self.size)

    @property
    def takes_memory(self) -> bool:
        """Whether it was asked for its address."""
        return "_pages" in vars(self)

    def release(self) -> bool:
        """Let the system take the memory if it wants it, and say whether there is a way to tell it so.

        What was in it is lost. Until the system takes a page, writing to it costs nothing.
        """
        if not hasattr(mmap, "MADV_FREE"):
            return False
        try:
            self._pages.madvise(mmap.MADV_FREE)
        except OSError:  # a process may keep all its memory from the system
            return False
        return True

    def give_back(self, start: int, stop: int) -> None:
        """End a loan. This happens at any time, in any thread, even while another begins: the gaps stay as they are."""
        self._given_back.append((start, stop))

    @property
    def is_unused(self) -> bool:
        self._join_gaps()
        return self._gaps == [(0, self.size)]

    def has_room(self, size: int) -> bool:
        """Whether there is a gap of at least `size` bytes."""
        self._join_gaps()
        return any(stop - start >= size for start, stop in self._gaps)

    def take(self, size: int) -> int:
        """Return where in the first gap that fits a new loan of `size` bytes begins."""
        # Measured with clips, the shortest gap left up to half as much more memory touched.
        start, stop = min(gap for gap in self._gaps if gap[1] - gap[0] >= size)
        self._gaps.remove((start, stop))
        if stop - start > size:
            self._gaps.append((start + size, stop))
        return start

    def _join_gaps(self) -> None:
        while self._given_back:
            self._gaps.append(self._given_back.pop())
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(self._gaps):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        self._gaps = joined


def pages(size: int) -> Tensor:
    """Return so many bytes of their own, which go back to the kernel when freed, whatever else was allocated."""
    return torch.frombuffer(_mapped(size), dtype=torch.uint8)


def _mapped(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    # Private, for Linux gives huge pages to no other: 512 times as few are filled at a first touch.
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


# Bytes. What takes more takes so long that fresh pages hardly count.
_MOST = 2**31

# Reentrant, for a workspace may end wherever garbage is collected.
_lock = RLock()
# By whether they serve what is persistent beyond a pass: so each serves the same tensors again, and no others of its pages
# are filled.
_spare: dict[bool, list[Region]] = {False: [], True: []}


def _renew_lock() -> None:
    global _lock
    _lock = RLock()


# Whoever held it is not there in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def leave(regions: list[Region], *, persistent: bool) -> None:
    """Take over those of `regions` that nothing is lent of; they are removed from the list."""
    with _lock:
        for region in [region for region in regions if region.takes_memory and region.is_unused]:
            held = sum(spare.size for spares in _spare.values() for spare in spares)
            if held + region.size <= _MOST and region.release():
                regions.remove(region)
                _spare[persistent].append(region)


def take(size: int, *, persistent: bool) -> Region | None:
    """Return a region of at least `size` bytes. Where there is none, what is smaller goes back to the system."""
    with _lock:
        spare = _spare[persistent]
        region = next((region for region in spare if region.size >= size), None)
        if region is None:
            spare.clear()
        else:
            spare.remove(region)
        return region


def empty_cache() -> None:
    """Give the CPU memory back to the system that is persistent for later calls, which would otherwise take it on demand."""
    with _lock:
        for spare in _spare.values():
            spare.clear()


# Bytes: no two tensors share a line of the cache, and vectors are read in one go.
_ALIGNMENT = 64
# Bytes: address space, of which only the touched pages take memory; loans side by side in one leave fewer gaps unused.
_LEAST_REGION = 2**28


class Workspace:
    """Gives out tensors whose memory comes back by itself when the last view of them is gone.

    On a CPU, fresh memory is slow: the kernel fills each page with zeros at its first touch, which for the tensors of
    one pass through the network takes up to a third of the time, and a C library gives large ones back to the kernel as
    soon as they are freed. A GPU's memory is persistent by PyTorch itself.

    Whoever runs a clip through the network owns one; when it is dropped, its memory waits for the next one.

    Args:
        hands_on: Whether it does wait. While more is yet to be taken in the same call, it had better go.
    """

    def __init__(self, *, recycle: bool = True) -> None:
        # By whether they are for what is persistent: that would leave gaps between loans that come and go.
        self._regions: dict[bool, list[Region]] = {False: [], True: []}
        self._recycle = recycle
        self._has_finalizer = False

    def trim(self) -> None:
        """Hand on the memory of which nothing is lent, until this workspace lends again."""
        if self._recycle:
            _hand_on(self._regions)

    def empty(self, shape: tuple[int, ...], like: Tensor, *, persistent: bool = False) -> Tensor:
        """Return a tensor (B, C, T, H, W) with undefined values, of the dtype and on the device of `like`.

        It is stored channels-last; where gradients are recorded, it is any new tensor. Is it to be `persistent` beyond the
        pass, its memory is taken apart from all other.
        """
        if needs_plain_ops():
            return like.new_empty(shape)
        estimator = estimator_of(like)
        if estimator is not None:
            return estimator.lend(self, shape, like, persistent=persistent)
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
        batch, channels, frames, height, width = shape
        values = self._values(math.prod(shape), like.dtype, persistent)
        return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    @staticmethod
    def empty_persistent(shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return what `empty` does, in memory of its own, for what is persistent from pass to pass and overwritten."""
        estimator = estimator_of(like)
        if estimator is not None:
            return estimator.map(shape, like)
        with torch.inference_mode(False):  # so that it can be overwritten in any mode
            if like.device.type != "cpu":
                return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
            batch, channels, frames, height, width = shape
            values = pages(math.prod(shape) * like.dtype.itemsize).view(like.dtype)
            return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    def _values(self, count: int, dtype: torch.dtype, persistent: bool) -> Tensor:
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        region, start, stop = self.place(size, persistent=persistent, written=True)
        if self._recycle and not self._has_finalizer:
            # Not before, for torch.compile cannot follow it.
            weakref.finalize(self, _hand_on, self._regions).atexit = False
            self._has_finalizer = True
        # The tensor below holds on to this object, and with it ends the loan.
        loan = (ctypes.c_char * size).from_address(region.address + start)
        weakref.finalize(loan, region.give_back, start, stop).atexit = False
        return torch.frombuffer(loan, dtype=dtype)

    def place(self, size: int, *, persistent: bool = False, written: bool = False) -> tuple[Region, int, int]:
        """Return a region, and where in it a new loan of `size` bytes begins and ends.

        Args:
            size: Of the loan.
            persistent: Whether it is to outlast the pass.
            written: Whether it will be written to; in a rehearsal it will not.
        """
        size, regions = _rounded(size), self._regions[persistent]
        region = next((region for region in regions if region.has_room(size)), None)
        if region is None:
            region = take(size, persistent=persistent) if written else None
            if region is None:
                # What is free and too small becomes one: what is held stays near what is needed at one time.
                unused = [region for region in regions if region.is_unused]
                regions[:] = [region for region in regions if region not in unused]
                together = sum(region.size for region in unused)
                del unused
                region = Region(max(size, together, _LEAST_REGION))
            regions.append(region)
        start = region.take(size)
        return region, start, start + size


def _hand_on(regions: dict[bool, list[Region]]) -> None:
    for persistent, some in regions.items():
        leave(some, persistent=persistent)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
