"""How the command line's process gets the memory of its tensors. A library must leave that to its user."""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, instead of giving each back and mapping it afresh.

    The same sizes come again with every pass through the network, and the page faults of fresh memory cost a third of
    the time. Elsewhere than under glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
