"""The video VAE of Wan2.1 and its siblings: exact, streaming, and in every checkpoint layout.

Examples:
    >>> from wan_vae import WanVAE
    >>> vae = WanVAE.from_pretrained("wan2.1")
    >>> latents = vae.encode(video)  # (1, 3, 17, 480, 832) in [-1, 1] -> (1, 16, 5, 60, 104)
    >>> video = vae.decode(latents)
"""

# Type checkers take it for true. Importing it from typing would take longer than all else until Ctrl-C is handled.
TYPE_CHECKING = False

# Type checkers read these imports, Python the table below; `as` marks a name as exported.
if TYPE_CHECKING:
    from wan_vae.alpha_pair import AlphaPair as AlphaPair
    from wan_vae.compare import ReportResult as ReportResult
    from wan_vae.compare import compare_file as compare_file
    from wan_vae.compare import report_file as report_file
    from wan_vae.config import VAEConfig as VAEConfig
    from wan_vae.errors import CheckpointError as CheckpointError
    from wan_vae.errors import ClipError as ClipError
    from wan_vae.errors import LatentsError as LatentsError
    from wan_vae.errors import UserError as UserError
    from wan_vae.evaluation.metrics import Score as Score
    from wan_vae.files import DecodeResult as DecodeResult
    from wan_vae.files import EncodeResult as EncodeResult
    from wan_vae.files import decode_file as decode_file
    from wan_vae.files import encode_file as encode_file
    from wan_vae.files import preview_file as preview_file
    from wan_vae.inference.budget import Budget as Budget
    from wan_vae.inference.planner import BudgetError as BudgetError
    from wan_vae.inference.planner import Plan as Plan
    from wan_vae.inference.stream import DecodeStream as DecodeStream
    from wan_vae.inference.stream import EncodeStream as EncodeStream
    from wan_vae.inference.tiling import Tiling as Tiling
    from wan_vae.io.latents_info import LatentsInfo as LatentsInfo
    from wan_vae.model.halo import Neighbors as Neighbors
    from wan_vae.ops.cpu.build import build_kernels as build_kernels
    from wan_vae.ops.cpu.build import set_kernel_building as set_kernel_building
    from wan_vae.ops.workspace import empty_cache as empty_cache
    from wan_vae.posterior import Posterior as Posterior
    from wan_vae.reconstruction import ReconstructResult as ReconstructResult
    from wan_vae.reconstruction import reconstruct_file as reconstruct_file
    from wan_vae.sharding import ShardedVAE as ShardedVAE
    from wan_vae.tiny import TinyVAE as TinyVAE
    from wan_vae.tiny import load_vae as load_vae
    from wan_vae.vae import WanVAE as WanVAE

__version__ = "0.2.0"

_NAMES = {
    "alpha_pair": ("AlphaPair",),
    "compare": ("ReportResult", "compare_file", "report_file"),
    "config": ("VAEConfig",),
    "errors": ("CheckpointError", "ClipError", "LatentsError", "UserError"),
    "evaluation.metrics": ("Score",),
    "files": (
        "DecodeResult",
        "EncodeResult",
        "decode_file",
        "encode_file",
        "preview_file",
    ),
    "inference.budget": ("Budget",),
    "inference.planner": ("BudgetError", "Plan"),
    "inference.stream": ("DecodeStream", "EncodeStream"),
    "inference.tiling": ("Tiling",),
    "io.latents_info": ("LatentsInfo",),
    "model.halo": ("Neighbors",),
    "ops.cpu.build": ("build_kernels", "set_kernel_building"),
    "ops.workspace": ("empty_cache",),
    "posterior": ("Posterior",),
    "reconstruction": ("ReconstructResult", "reconstruct_file"),
    "sharding": ("ShardedVAE",),
    "tiny": ("TinyVAE", "load_vae"),
    "vae": ("WanVAE",),
}
_MODULES = {name: f"wan_vae.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    # Importing torch takes seconds, and `wan-vae --help` does not need it.
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])


if not TYPE_CHECKING:  # type checkers could not evaluate it, and would take it for empty
    __all__ = __dir__()
