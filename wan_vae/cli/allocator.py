"""How the command line's process keeps memory that was freed. A library must leave that to its user."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Have glibc reuse the memory of freed tensors.

    It otherwise maps large ones afresh, page by page, and moves the size that counts as large while it runs, which
    leaves holes: the peak then creeps up with a clip's length. Elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 2**30)
