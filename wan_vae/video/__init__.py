"""Reading and writing clips: videos, animations and pictures."""

from wan_vae.video.audio import AudioSource
from wan_vae.video.clip import Clip, ClipInfo
from wan_vae.video.color import Color
from wan_vae.video.opening import open_clip
from wan_vae.video.writer import ClipWriter, create_clip

__all__ = ["AudioSource", "Clip", "ClipInfo", "ClipWriter", "Color", "create_clip", "open_clip"]
