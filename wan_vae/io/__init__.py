"""Files in and out: clips (videos, animations, images) and latents.

A clip is a video tensor (1, 3, T, H, W) in [-1, 1], or frames (n, height, width, 3) in uint8 or uint16.
`read_clip` and `write_clip` handle whole clips, `open_clip` and `create_clip` chunks; so do `load_latents` and
`save_latents` and `LatentsFile` and `LatentsWriter`. All take a path; those for latents, and those that read, also a
binary file object.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_vae.io.atomic_output import check_output
    from wan_vae.io.audio import AudioSource
    from wan_vae.io.clip import Clip, ClipInfo
    from wan_vae.io.color import Color
    from wan_vae.io.frames import Frames, frames_to_tensor, tensor_to_frames
    from wan_vae.io.latents_file import LatentsFile, LatentsInfo, LatentsWriter, load_latents, save_latents
    from wan_vae.io.reader import open_clip, read_clip
    from wan_vae.io.writer import ClipWriter, create_clip, write_clip

__all__ = [
    "AudioSource",
    "Clip",
    "ClipInfo",
    "ClipWriter",
    "Color",
    "Frames",
    "LatentsFile",
    "LatentsInfo",
    "LatentsWriter",
    "check_output",
    "create_clip",
    "frames_to_tensor",
    "load_latents",
    "open_clip",
    "read_clip",
    "save_latents",
    "tensor_to_frames",
    "write_clip",
]

_NAMES_BY_MODULE = {
    "atomic_output": ("check_output",),
    "audio": ("AudioSource",),
    "clip": ("Clip", "ClipInfo"),
    "color": ("Color",),
    "frames": ("Frames", "frames_to_tensor", "tensor_to_frames"),
    "latents_file": ("LatentsFile", "LatentsInfo", "LatentsWriter", "load_latents", "save_latents"),
    "reader": ("open_clip", "read_clip"),
    "writer": ("ClipWriter", "create_clip", "write_clip"),
}
_MODULES = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    # PyAV and torch take up to seconds to import, and `wan-vae --help` needs neither.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
