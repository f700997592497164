"""The video VAE of Wan2.1 and its siblings: exact, streaming, and in every checkpoint layout.

>>> from wan_vae import WanVAE
>>> vae = WanVAE.from_pretrained("wan2.1")
>>> latents = vae.encode(video)  # (1, 3, 17, 480, 832) in [-1, 1] -> (1, 16, 5, 60, 104)
>>> video = vae.decode(latents)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_vae.config import VAEConfig
    from wan_vae.errors import CheckpointError, ClipError, LatentsError, UserError
    from wan_vae.inference.stream import DecodeStream, EncodeStream
    from wan_vae.ops.cpu.build import build_kernels, set_kernel_building
    from wan_vae.ops.workspace import empty_cache
    from wan_vae.posterior import Posterior
    from wan_vae.sharding import ShardedVAE
    from wan_vae.vae import WanVAE

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ClipError",
    "DecodeStream",
    "EncodeStream",
    "LatentsError",
    "Posterior",
    "ShardedVAE",
    "UserError",
    "VAEConfig",
    "WanVAE",
    "__version__",
    "build_kernels",
    "empty_cache",
    "set_kernel_building",
]

_HOMES = {
    "CheckpointError": "wan_vae.errors",
    "ClipError": "wan_vae.errors",
    "DecodeStream": "wan_vae.inference.stream",
    "EncodeStream": "wan_vae.inference.stream",
    "LatentsError": "wan_vae.errors",
    "Posterior": "wan_vae.posterior",
    "ShardedVAE": "wan_vae.sharding",
    "UserError": "wan_vae.errors",
    "VAEConfig": "wan_vae.config",
    "WanVAE": "wan_vae.vae",
    "build_kernels": "wan_vae.ops.cpu.build",
    "empty_cache": "wan_vae.ops.workspace",
    "set_kernel_building": "wan_vae.ops.cpu.build",
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, and `wan-vae --help` does not need it.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
