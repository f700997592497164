"""Memory straight from the kernel, of which any parts are lent."""

import mmap
from functools import cached_property

import torch
from torch import Tensor


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
