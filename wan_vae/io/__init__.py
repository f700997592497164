"""Reading and writing clips: videos, animations and pictures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan_vae.io.audio import AudioSource
    from wan_vae.io.clip import Clip, ClipInfo
    from wan_vae.io.color import Color
    from wan_vae.io.reader import open_clip
    from wan_vae.io.writer import ClipWriter, create_clip

__all__ = ["AudioSource", "Clip", "ClipInfo", "ClipWriter", "Color", "create_clip", "open_clip"]

_MODULES = {
    "AudioSource": "audio",
    "Clip": "clip",
    "ClipInfo": "clip",
    "ClipWriter": "writer",
    "Color": "color",
    "create_clip": "writer",
    "open_clip": "reader",
}


def __getattr__(name: str) -> Any:
    # PyAV takes a tenth of a second to import, and `wan-vae --help` does not need it.
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
