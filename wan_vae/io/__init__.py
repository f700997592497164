"""Files in and out: clips (videos, animations, images) and latents.

A clip is a video tensor (1, 3, T, H, W) in [-1, 1], or frames (n, height, width, 3) in uint8 or uint16; with alpha, 4
channels instead of 3.
`read_clip` and `write_clip` handle whole clips, `open_clip` and `create_clip` chunks; so do `load_latents` and
`save_latents` and `LatentsFile` and `LatentsWriter`. All take a path; all but `create_clip`, `write_clip` and
`LatentsFile` also a binary file object.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Type checkers read these imports, Python the table below; `as` marks a name as exported.
if TYPE_CHECKING:
    from wan_vae.io.atomic_output import check_output as check_output
    from wan_vae.io.audio import AudioSource as AudioSource
    from wan_vae.io.clip import Clip as Clip
    from wan_vae.io.clip import ClipInfo as ClipInfo
    from wan_vae.io.color import Color as Color
    from wan_vae.io.frames import Frames as Frames
    from wan_vae.io.frames import frames_to_tensor as frames_to_tensor
    from wan_vae.io.frames import tensor_to_frames as tensor_to_frames
    from wan_vae.io.latents_file import LatentsFile as LatentsFile
    from wan_vae.io.latents_file import LatentsWriter as LatentsWriter
    from wan_vae.io.latents_file import load_latents as load_latents
    from wan_vae.io.latents_file import save_latents as save_latents
    from wan_vae.io.latents_info import LatentsInfo as LatentsInfo
    from wan_vae.io.reader import open_clip as open_clip
    from wan_vae.io.reader import read_clip as read_clip
    from wan_vae.io.writer import ClipWriter as ClipWriter
    from wan_vae.io.writer import create_clip as create_clip
    from wan_vae.io.writer import write_clip as write_clip

_NAMES = {
    "atomic_output": ("check_output",),
    "audio": ("AudioSource",),
    "clip": ("Clip", "ClipInfo"),
    "color": ("Color",),
    "frames": ("Frames", "frames_to_tensor", "tensor_to_frames"),
    "latents_file": ("LatentsFile", "LatentsWriter", "load_latents", "save_latents"),
    "latents_info": ("LatentsInfo",),
    "reader": ("open_clip", "read_clip"),
    "writer": ("ClipWriter", "create_clip", "write_clip"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # PyAV and torch take up to seconds to import, and `wan-vae --help` needs neither.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_MODULES)


if not TYPE_CHECKING:  # type checkers could not evaluate it, and would take it for empty
    __all__ = __dir__()
