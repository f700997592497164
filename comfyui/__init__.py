"""Nodes for ComfyUI: the VAE of Wan2.1, Wan2.2 and Qwen-Image on the network of the package wan_vae."""

try:
    import wan_vae  # noqa: F401
except ImportError as error:
    raise ImportError(f"The nodes of {__file__} need wan-vae in ComfyUI's Python; see the README beside it.") from error

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
