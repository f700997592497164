"""Checks of what callers pass in: videos, latents and dtypes; and the choice of dtypes for a device."""

import logging
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""Names of the dtypes that weights can have."""

_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype that a text such as "bfloat16" or "bf16" names; a dtype and None are returned as they are.

    Raises:
        UserError: It is not one of `DTYPES`.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in DTYPES:
        raise UserError(f"dtype is {str(dtype)!r}; it must be {', '.join(DTYPES)} or a torch.dtype of these.")
    return DTYPES[name]


class Dtypes(NamedTuple):
    """The dtypes of a model's halves: the arguments of `WanVAE.set_dtypes`."""

    encoder: torch.dtype
    decoder: torch.dtype

    def __str__(self) -> str:
        encoder, decoder = (str(dtype).removeprefix("torch.") for dtype in self)
        return encoder if encoder == decoder else f"{encoder} (encoder) and {decoder} (decoder)"


def choose_dtypes(dtype: str, device: torch.device) -> Dtypes:
    """Return the dtypes for a device: "fp32", "bf16" or "fp16" for both halves, or "auto".

    "auto" is bfloat16 where it is fast, except that CPUs encode in float32: latents are kept and trained on, and only
    float32 is nearly lossless for them.

    Raises:
        UserError: There is no such dtype.
    """
    if dtype != "auto":
        if dtype not in _ALIASES:
            raise UserError(f"The dtype is {dtype!r}; it must be auto, {', '.join(_ALIASES)}.")
        return Dtypes(DTYPES[_ALIASES[dtype]], DTYPES[_ALIASES[dtype]])
    if device.type == "cuda":
        return Dtypes(torch.bfloat16, torch.bfloat16)
    # Without these instructions bfloat16 is emulated in float32 and slower than it. Old versions of torch cannot tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return Dtypes(torch.float32, torch.bfloat16 if fast else torch.float32)


def check_video(video: Tensor, config: VAEConfig, *, whole: bool) -> None:
    """Check that a model can encode a video (B, 3, T, H, W), or a chunk of any length if not `whole`.

    Logs one warning per process if the values look like [0, 255] instead of [-1, 1].

    Raises:
        UserError: It cannot; the message says what would fit.
    """
    _check_tensor(video, "The video is")
    if video.ndim != 5 or video.shape[1] != 3:
        raise UserError(f"A video is (B, 3, T, H, W), but this one is {tuple(video.shape)}.")
    _check_batch(video, "videos")
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
    if _looks_like_levels(video):
        _warn_of_levels()


def check_latents(latents: Tensor, config: VAEConfig, *, whole: bool) -> None:
    """Check that a model can decode latents (B, z, t, h, w), or a chunk of any length if not `whole`.

    Raises:
        UserError: It cannot; the message says what would fit.
    """
    _check_tensor(latents, "The latents are")
    channels = config.latent_channels
    if latents.ndim != 5 or latents.shape[1] != channels or (whole and 0 in latents.shape[2:]):
        raise UserError(f"Latents of this model are (B, {channels}, t, h, w), but these are {tuple(latents.shape)}.")
    _check_batch(latents, "latents")
    if not latents.is_floating_point():
        raise UserError(f"Latents are floating point numbers, but these are {latents.dtype}.")


def check_device(x: Tensor, device: torch.device) -> None:
    """Raise a UserError if a video, latents or a chunk of them are not on the model's device."""
    if x.device != device:
        raise UserError(f"The input is on {x.device}, but the model on {device}; move it there: `.to(vae.device)`.")


def _check_tensor(value: object, subject: str) -> None:
    if isinstance(value, Tensor):
        return
    if type(value).__name__ == "ndarray":
        raise UserError(f"{subject} a numpy array; pass torch.from_numpy(...).")
    raise UserError(f"{subject} a {type(value).__name__}; pass a torch.Tensor.")


def _check_batch(values: Tensor, what: str) -> None:
    if values.shape[0] == 0:
        raise UserError(f"The batch of {what} is empty: it is {tuple(values.shape)}; B must be 1 or more.")


def _looks_like_levels(video: Tensor) -> bool:
    """Return true if a sample of the values seems to lie in [0, 255] instead of [-1, 1].

    False where values cannot be read or reading waits for a device: in traced code, under `vmap`, outside the CPU.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if torch._C._are_functorch_transforms_active() or type(video) is not Tensor:
        return False
    if video.device.type != "cpu" or video.numel() == 0:
        return False
    strides = (max(1, size // 8) for size in video.shape[2:])
    low, high = torch.aminmax(video.detach()[(slice(1), slice(None), *(slice(None, None, step) for step in strides))])
    return bool(high > 2 or (high > 1.5 and low >= 0))


@cache  # once per process
def _warn_of_levels() -> None:
    logging.getLogger("wan_vae").warning(
        "The video seems to hold values in [0, 255], but they must be in [-1, 1]: divide by 127.5, minus 1."
    )


def _fitting(size: int, multiple: int, *, offset: int) -> str:
    below = (size - offset) // multiple * multiple + offset
    return " or ".join(str(fit) for fit in (below, below + multiple) if fit > 0)
