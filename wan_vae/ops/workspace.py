"""Memory for the large tensors of a pass, used again for the next one."""

import ctypes
import math
import mmap
import weakref
from functools import cached_property

import torch
from torch import Tensor

from wan_vae.ops.recording import recorded
from wan_vae.ops.rehearsal import rehearsal_of

# Bytes: no two tensors share a line of the cache, and vectors are read in one go.
_ALIGNMENT = 64
# Bytes: address space, of which only the touched pages take memory; loans side by side in one leave fewer gaps unused.
_LEAST_REGION = 2**28


class Workspace:
    """Gives out tensors whose memory comes back by itself when the last view of them is gone.

    On a CPU, fresh memory is slow: the kernel fills each page with zeros at its first touch, which for the tensors of
    one pass through the network takes up to a third of the time, and a C library gives large ones back to the kernel as
    soon as they are freed. A GPU's memory is kept by PyTorch itself.

    Whoever runs a clip through the network owns one; when it is dropped, all memory goes back.
    """

    def __init__(self) -> None:
        self._regions: list[Region] = []
        # Apart, for what is kept would leave gaps between loans that come and go.
        self._kept_regions: list[Region] = []

    def empty(self, shape: tuple[int, ...], like: Tensor, *, kept: bool = False) -> Tensor:
        """Return a tensor (B, C, T, H, W) with undefined values, of the dtype and on the device of `like`.

        It is stored channels-last; where gradients are recorded, it is any new tensor. Is it to be `kept` beyond the
        pass, its memory is taken apart from all other.
        """
        if recorded():
            return like.new_empty(shape)
        rehearsal = rehearsal_of(like)
        if rehearsal is not None:
            return rehearsal.lend(self, shape, like, kept=kept)
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
        batch, channels, frames, height, width = shape
        values = self._values(math.prod(shape), like.dtype, kept)
        return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    @staticmethod
    def lasting(shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return what `empty` does, in memory of its own, for what is kept from pass to pass and overwritten."""
        rehearsal = rehearsal_of(like)
        if rehearsal is not None:
            return rehearsal.map(shape, like)
        with torch.inference_mode(False):  # so that it can be overwritten in any mode
            if like.device.type != "cpu":
                return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
            batch, channels, frames, height, width = shape
            values = _pages(math.prod(shape) * like.dtype.itemsize).view(like.dtype)
            return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    def _values(self, count: int, dtype: torch.dtype, kept: bool) -> Tensor:
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        region, start, stop = self.place(size, kept=kept)
        # The tensor below holds on to this object, and with it ends the loan.
        loan = (ctypes.c_char * size).from_address(region.memory.data_ptr() + start)
        weakref.finalize(loan, region.give_back, start, stop).atexit = False
        return torch.frombuffer(loan, dtype=dtype)

    def place(self, size: int, *, kept: bool = False) -> tuple["Region", int, int]:
        """Return a region, and where in it a new loan of `size` bytes begins and ends."""
        size = _rounded(size)
        regions = self._kept_regions if kept else self._regions
        region = next((region for region in regions if region.has_room(size)), None)
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


class Region:
    """Memory of which any parts are lent, side by side."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._gaps = [(0, size)]
        self._given_back: list[tuple[int, int]] = []

    @cached_property
    def memory(self) -> Tensor:
        """Its bytes."""
        return _pages(self.size)

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


def _pages(size: int) -> Tensor:
    # Straight from the kernel, so that it goes back there when freed, whatever else was allocated meanwhile.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Private, for Linux gives huge pages to no other: 512 times as few are filled at a first touch.
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
    else:
        pages = mmap.mmap(-1, size)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
