"""How the command line's process gets the memory of its tensors. A library must leave that to its user."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
_LARGEST_THRESHOLD = 32 * 2**20  # that glibc takes on 64 bits


def return_freed_memory() -> None:
    """Have glibc map each very large tensor on its own, and give it back when it is freed.

    The size from which it does so is otherwise moved while the process runs. What is smaller lives in a heap that fills
    with holes, so that a clip of 250 frames peaks up to 5 % higher than one of 50; mapping everything afresh instead
    costs a third of the time in page faults. Elsewhere than under glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
