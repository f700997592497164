"""Data sets of latents: clips encoded into a cache for training, and read back.

`cache_latents` encodes a folder or a list of clips, `LatentDataset` reads a cache.
"""

from typing import TYPE_CHECKING, Any

from wan_vae.dataset.cache import CacheResult, cache_latents
from wan_vae.dataset.checks import Estimate, estimate_cache, verify_cache
from wan_vae.dataset.parts import Extract
from wan_vae.dataset.plan import CacheOptions

if TYPE_CHECKING:
    from wan_vae.dataset.reading import LatentDataset

__all__ = [
    "CacheOptions",
    "CacheResult",
    "Estimate",
    "Extract",
    "LatentDataset",
    "cache_latents",
    "estimate_cache",
    "verify_cache",
]


def __getattr__(name: str) -> Any:
    # It needs torch, which a run that finds nothing to do does not load.
    if name == "LatentDataset":
        from wan_vae.dataset.reading import LatentDataset

        return LatentDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
