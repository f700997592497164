"""Memory for the large tensors of a pass, used again for the next one."""

import ctypes
import math
import weakref

import torch
from torch import Tensor

from wan_vae.ops import spare_memory
from wan_vae.ops.recording import recorded
from wan_vae.ops.region import Region, pages
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

    Whoever runs a clip through the network owns one; when it is dropped, its memory waits for the next one.

    Args:
        hands_on: Whether it does wait. While more is yet to be taken in the same call, it had better go.
    """

    def __init__(self, *, hands_on: bool = True) -> None:
        # By whether they are for what is kept: that would leave gaps between loans that come and go.
        self._regions: dict[bool, list[Region]] = {False: [], True: []}
        self._hands_on = hands_on
        self._has_finalizer = False

    def rest(self) -> None:
        """Hand on the memory of which nothing is lent, until this workspace lends again."""
        if self._hands_on:
            _hand_on(self._regions)

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
            values = pages(math.prod(shape) * like.dtype.itemsize).view(like.dtype)
            return values.view(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)

    def _values(self, count: int, dtype: torch.dtype, kept: bool) -> Tensor:
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=dtype, device="cpu")
        region, start, stop = self.place(size, kept=kept, written=True)
        if self._hands_on and not self._has_finalizer:
            # Not before, for torch.compile cannot follow it.
            weakref.finalize(self, _hand_on, self._regions).atexit = False
            self._has_finalizer = True
        # The tensor below holds on to this object, and with it ends the loan.
        loan = (ctypes.c_char * size).from_address(region.address + start)
        weakref.finalize(loan, region.give_back, start, stop).atexit = False
        return torch.frombuffer(loan, dtype=dtype)

    def place(self, size: int, *, kept: bool = False, written: bool = False) -> tuple[Region, int, int]:
        """Return a region, and where in it a new loan of `size` bytes begins and ends.

        Args:
            size: Of the loan.
            kept: Whether it is to outlast the pass.
            written: Whether it will be written to; in a rehearsal it will not.
        """
        size, regions = _rounded(size), self._regions[kept]
        region = next((region for region in regions if region.has_room(size)), None)
        if region is None:
            region = spare_memory.take(size, kept=kept) if written else None
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
    for kept, some in regions.items():
        spare_memory.leave(some, kept=kept)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
