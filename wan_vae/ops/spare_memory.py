"""Memory that no workspace needs at present, for the next one that does.

To fill fresh pages takes up to a third of a call's time, and on a virtual machine that has been idle longer than the
call. Here they wait for the next pass, of this clip or another. The system may take them whenever it wants: they count
as available, though tools still show them as this process's.
"""

import os
from threading import RLock

from wan_vae.ops.region import Region

# Bytes. What takes more takes so long that fresh pages hardly count.
_MOST = 2**31

# Reentrant, for a workspace may end wherever garbage is collected.
_lock = RLock()
# By whether they serve what is kept beyond a pass: so each serves the same tensors again, and no others of its pages
# are filled.
_spare: dict[bool, list[Region]] = {False: [], True: []}


def _renew_lock() -> None:
    global _lock
    _lock = RLock()


# Whoever held it is not there in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def leave(regions: list[Region], *, kept: bool) -> None:
    """Take over those of `regions` that nothing is lent of; they are removed from the list."""
    with _lock:
        for region in [region for region in regions if region.takes_memory and region.is_unused]:
            held = sum(spare.size for spares in _spare.values() for spare in spares)
            if held + region.size <= _MOST and region.release():
                regions.remove(region)
                _spare[kept].append(region)


def take(size: int, *, kept: bool) -> Region | None:
    """Return a region of at least `size` bytes. Where there is none, what is smaller goes back to the system."""
    with _lock:
        spare = _spare[kept]
        region = next((region for region in spare if region.size >= size), None)
        if region is None:
            spare.clear()
        else:
            spare.remove(region)
        return region


def empty_cache() -> None:
    """Give the CPU memory back to the system that is kept for later calls, which would otherwise take it on demand."""
    with _lock:
        for spare in _spare.values():
            spare.clear()
