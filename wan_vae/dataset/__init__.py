"""Data sets of latents: clips encoded into a cache for training, packed in shards, and read back.

`cache_latents` encodes a folder or a list of clips, `LatentDataset` reads a cache; `pack_latents` makes shards of one,
`LatentStream` reads these.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wan_vae.dataset.cache import CacheResult, cache_latents
from wan_vae.dataset.checks import Estimate, Verification, estimate_cache, verify_cache
from wan_vae.dataset.parts import Extract
from wan_vae.dataset.plan import CacheOptions

if TYPE_CHECKING:
    from wan_vae.dataset.pack import PackResult, pack_latents
    from wan_vae.dataset.reading import LatentDataset
    from wan_vae.dataset.stream import LatentStream

__all__ = [
    "CacheOptions",
    "CacheResult",
    "Estimate",
    "Extract",
    "LatentDataset",
    "LatentStream",
    "PackResult",
    "Verification",
    "cache_latents",
    "estimate_cache",
    "pack_latents",
    "verify_cache",
]

# They need torch, which a run that finds nothing to do does not load.
_LAZY = {"LatentDataset": "reading", "LatentStream": "stream", "PackResult": "pack", "pack_latents": "pack"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"wan_vae.dataset.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
