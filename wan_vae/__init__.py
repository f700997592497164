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
    from wan_vae.evaluation.metrics import Score
    from wan_vae.files import (
        DecodeResult,
        EncodeResult,
        ReconstructResult,
        decode_file,
        encode_file,
        reconstruct_file,
    )
    from wan_vae.inference.budget import Budget
    from wan_vae.inference.planner import Plan
    from wan_vae.inference.stream import DecodeStream, EncodeStream
    from wan_vae.inference.tiling import Tiling
    from wan_vae.io.latents_file import LatentsInfo
    from wan_vae.model.halo import Neighbors
    from wan_vae.ops.cpu.build import build_kernels, set_kernel_building
    from wan_vae.ops.workspace import empty_cache
    from wan_vae.posterior import Posterior
    from wan_vae.sharding import ShardedVAE
    from wan_vae.vae import WanVAE

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "CheckpointError",
    "ClipError",
    "DecodeResult",
    "DecodeStream",
    "EncodeResult",
    "EncodeStream",
    "LatentsError",
    "LatentsInfo",
    "Neighbors",
    "Plan",
    "Posterior",
    "ReconstructResult",
    "Score",
    "ShardedVAE",
    "Tiling",
    "UserError",
    "VAEConfig",
    "WanVAE",
    "__version__",
    "build_kernels",
    "decode_file",
    "empty_cache",
    "encode_file",
    "reconstruct_file",
    "set_kernel_building",
]

_NAMES = {
    "config": ("VAEConfig",),
    "errors": ("CheckpointError", "ClipError", "LatentsError", "UserError"),
    "evaluation.metrics": ("Score",),
    "files": (
        "DecodeResult",
        "EncodeResult",
        "ReconstructResult",
        "decode_file",
        "encode_file",
        "reconstruct_file",
    ),
    "inference.budget": ("Budget",),
    "inference.planner": ("Plan",),
    "inference.stream": ("DecodeStream", "EncodeStream"),
    "inference.tiling": ("Tiling",),
    "io.latents_file": ("LatentsInfo",),
    "model.halo": ("Neighbors",),
    "ops.cpu.build": ("build_kernels", "set_kernel_building"),
    "ops.workspace": ("empty_cache",),
    "posterior": ("Posterior",),
    "sharding": ("ShardedVAE",),
    "vae": ("WanVAE",),
}
_MODULES = {name: f"wan_vae.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, and `wan-vae --help` does not need it.
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
