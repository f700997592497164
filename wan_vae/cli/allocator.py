"""How the command line's process gets the memory of its tensors. A library must leave that to its user."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h


def return_freed_memory() -> None:
    """Have glibc map each large tensor on its own, and give it back when it is freed.

    It otherwise moves the size that counts as large while it runs and keeps the rest in a heap that fills with holes:
    the peak then creeps up with a clip's length. The price is page faults. Elsewhere than under glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 2**20)
