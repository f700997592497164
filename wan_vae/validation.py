"""What a model takes: the shapes and dtypes of clips and of latents."""

from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError


def check_video(video: Tensor, config: VAEConfig, *, whole: bool) -> None:
    """Make sure that a model can encode a video (B, 3, T, H, W), or a chunk of one if not `whole`.

    Raises:
        UserError: It cannot; the message says what would fit.
    """
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[0] == 0:
        raise UserError(f"A video is (B, 3, T, H, W), but this one is {tuple(video.shape)}.")
    if not video.is_floating_point():
        raise UserError(f"A video holds values in [-1, 1], but this one is {video.dtype}; divide by 127.5, minus 1.")
    frames, height, width = video.shape[2:]
    multiple = config.spatial_compression
    for name, size in (("height", height), ("width", width)):
        if size % multiple or size == 0:
            fitting = _fitting(size, multiple, offset=0)
            raise UserError(f"The {name} {size} is not a multiple of {multiple}; {fitting} would fit.")
    unit = config.temporal_compression
    if whole and (frames == 0 or (frames - 1) % unit):
        raise UserError(f"{frames} frames are not 1 + {unit}k; {_fitting(frames, unit, offset=1)} would fit.")


def check_latents(latents: Tensor, config: VAEConfig, *, whole: bool) -> None:
    """Make sure that a model can decode latents (B, z, t, h, w), or a chunk of them if not `whole`.

    Raises:
        UserError: It cannot.
    """
    channels = config.latent_channels
    if latents.ndim != 5 or latents.shape[1] != channels or (whole and latents.numel() == 0):
        raise UserError(f"Latents of this model are (B, {channels}, t, h, w), but these are {tuple(latents.shape)}.")
    if not latents.is_floating_point():
        raise UserError(f"Latents are floating point numbers, but these are {latents.dtype}.")


def _fitting(size: int, multiple: int, *, offset: int) -> str:
    below = (size - offset) // multiple * multiple + offset
    return " or ".join(str(fit) for fit in (below, below + multiple) if fit > 0)


def parse_dtype(dtype):  # SHIM
    return getattr(__import__("torch"), dtype) if isinstance(dtype, str) else dtype
