"""Checks of what callers pass in: tensors, dtypes and devices; and the choice of dtypes for a device."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.arguments import check_type, shown
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""Names of the dtypes that weights can have."""

TF32 = "tf32"
"""Float32 weights, whose convolutions on an NVIDIA GPU may round to TF32 in inference."""

_ALIASES = {"fp32": "float32", TF32: "float32", "bf16": "bfloat16", "fp16": "float16"}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype that a text such as "bfloat16", "bf16" or "tf32" names; a dtype and None are returned as they
    are.

    Raises:
        UserError: It is not one of `DTYPES`.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, str | torch.dtype) else ""
    name = _ALIASES.get(name, name)
    if name not in DTYPES:
        given = shown(str(dtype) if isinstance(dtype, torch.dtype) else dtype)
        raise UserError(f"dtype is {given}; it must be {', '.join(DTYPES)} or a torch.dtype of these.")
    return DTYPES[name]


def parse_dtypes(encoder: torch.dtype | str, decoder: torch.dtype | str) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of a model's halves, as of `parse_dtype`, which are not None."""
    found = []
    for name, given in (("encoder", encoder), ("decoder", decoder)):
        check_type(name, given, (str, torch.dtype), "a dtype")
        parsed = parse_dtype(given)
        assert parsed is not None
        found.append(parsed)
    return found[0], found[1]


class Dtypes(NamedTuple):
    """The dtypes of a model's halves: the arguments of `WanVAE.set_dtypes`."""

    encoder: torch.dtype | str
    decoder: torch.dtype | str

    def __str__(self) -> str:
        encoder, decoder = (str(dtype).removeprefix("torch.") for dtype in self)
        return encoder if encoder == decoder else f"{encoder} (encoder) and {decoder} (decoder)"


def choose_dtypes(dtype: str, device: torch.device) -> Dtypes:
    """Return the dtypes for a device: "fp32", "tf32", "bf16" or "fp16" for both halves, or "auto".

    "auto" is bfloat16 where it is fast, except that CPUs encode in float32: latents are kept and trained on, and only
    float32 is nearly lossless for them.

    Raises:
        UserError: There is no such dtype.
    """
    if dtype != "auto":
        if not isinstance(dtype, str) or dtype not in _ALIASES:
            raise UserError(f"The dtype is {shown(dtype)}; it must be auto, {', '.join(_ALIASES)}.")
        chosen = TF32 if dtype == TF32 else DTYPES[_ALIASES[dtype]]
        return Dtypes(chosen, chosen)
    if device.type == "cuda":
        # Before Ampere, PyTorch has no bfloat16 convolutions of cuDNN; ROCm has its own.
        nvidia = torch.version.hip is None and torch.cuda.is_available()  # else ROCm, or a plan for a GPU elsewhere
        old = nvidia and torch.cuda.get_device_capability(device)[0] < 8
        return Dtypes(torch.float32, torch.float32) if old else Dtypes(torch.bfloat16, torch.bfloat16)
    # Without these instructions bfloat16 gains a few percent at most (measured: docs/speed.md), and rounds more. Old
    # versions of torch cannot tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return Dtypes(torch.float32, torch.bfloat16 if fast else torch.float32)


def best_device() -> torch.device:
    """Return a GPU if there is one, else the CPU.

    MPS is only used where it is named: PyTorch's 3-D convolutions gave wrong results there in several releases.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parse_device(device: str | torch.device | None, *, present: bool = True) -> torch.device | None:
    """Return the device that a text such as "cuda:1" names; "auto" is `best_device`, and None is returned as it is.

    Raises:
        UserError: torch knows no such device or, where it must be `present`, cannot use it here.
    """
    if device is None:
        return None
    if device == "auto":
        return best_device()
    try:
        parsed = torch.device(device)
        if present:
            torch.empty(0, device=parsed)
        return parsed
    except Exception as error:  # backends that are not there raise anything, AssertionError and ImportError included
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(
            f"The device is {shown(device)}, which this machine or this build of torch has not; {', '.join(here)} would"
            " work."
        ) from error


def check_video(video: Tensor, config: VAEConfig, *, whole: bool) -> None:
    """Check that a model can encode a video (B, 3, T, H, W), or a chunk of any length if not `whole`.

    Logs one warning per process if the values look like [0, 255] instead of [-1, 1].

    Raises:
        UserError: It cannot; the message says what would fit.
    """
    check_tensor(video, "The video is")
    channels = config.image_channels
    if video.ndim != 5 or video.shape[1] != channels:
        alpha = ", with alpha as the last channel" if channels == 4 else ""
        raise UserError(f"A video is (B, {channels}, T, H, W){alpha}, but this one is {tuple(video.shape)}.")
    _check_batch(video, "videos")
    if video.dtype not in DTYPES.values():
        numbers = video.is_floating_point() or video.is_complex() or video.dtype is torch.bool
        cure = "convert it to float32" if numbers else "divide by 127.5, minus 1"
        raise UserError(f"A video holds values in [-1, 1], but this one is {video.dtype}; {cure}.")
    frames, height, width = video.shape[2:]
    check_video_size(frames, height, width, config, whole=whole)
    if _looks_like_levels(video):
        _warn_of_levels()


def check_video_size(frames: int, height: int, width: int, config: VAEConfig, *, whole: bool) -> None:
    """Raise a UserError, which says what would fit, if a model cannot encode a video or chunk of this size."""
    multiple = config.spatial_compression
    for name, size in (("height", height), ("width", width)):
        if size % multiple or size == 0:
            fitting = _fitting(size, multiple, offset=0)
            raise UserError(f"The {name} {size} is not a multiple of {multiple}; {fitting} would fit.")
    if config.images_only and frames > 1:
        raise UserError(f"This model encodes single pictures, not {frames} frames; put several in a batch.")
    unit = config.temporal_compression
    if whole and (frames == 0 or (frames - 1) % unit):
        raise UserError(f"{frames} frames are not 1 + {unit}k; {_fitting(frames, unit, offset=1)} would fit.")


def check_latents(latents: Tensor, config: VAEConfig, *, whole: bool) -> None:
    """Check that a model can decode latents (B, z, t, h, w), or a chunk of any length if not `whole`.

    Raises:
        UserError: It cannot; the message says what would fit.
    """
    check_channels(latents, config)
    if 0 in latents.shape[2 if whole else 3 :]:
        raise UserError(
            f"Latents of this model are (B, {config.latent_channels}, t, h, w), but these are {tuple(latents.shape)},"
            " which holds no value."
        )
    if config.images_only and latents.shape[2] > 1:
        raise UserError(f"This model decodes single pictures, not {latents.shape[2]} latents; put several in a batch.")
    _check_batch(latents, "latents")


def check_channels(latents: Tensor, config: VAEConfig) -> None:
    """Raise a UserError if a tensor does not hold raw or normalized latents (B, z, t, h, w) of a model."""
    check_tensor(latents, "The latents are")
    channels = config.latent_channels
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise UserError(f"Latents of this model are (B, {channels}, t, h, w), but these are {tuple(latents.shape)}.")
    if latents.dtype not in DTYPES.values():
        raise UserError(f"Latents are floating point numbers, but these are {latents.dtype}; convert them.")


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise a UserError if `weights` are not those of a model whose `state_dict()` is like `expected`."""
    check_type("weights", weights, Mapping, "a dictionary of tensors, such as a model's state_dict()")
    faults = {
        "missing": [name for name in expected if name not in weights],
        "of another model": [name for name in weights if name not in expected],
    }
    for name, like in expected.items():
        if name in weights:
            weight = weights[name]
            check_tensor(weight, f"The weight {name} is")
            if weight.shape != like.shape:
                faults[f"{tuple(weight.shape)} where {tuple(like.shape)} belongs"] = [name]
            elif weight.dtype not in (DTYPES.values() if like.is_floating_point() else [like.dtype]):
                faults[f"{weight.dtype}, which no weight of this model can be"] = [name]
    for fault, names in faults.items():
        if names:
            raise UserError(f"Of {len(expected)} weights, {names[0]!r} is {fault}; take the weights of this config.")


def check_device(x: Tensor, device: torch.device) -> None:
    """Raise a UserError if a video, latents or a chunk of them are not on the model's device."""
    if x.device != device:
        raise UserError(f"The input is on {x.device}, but the model on {device}; move it there: `.to(vae.device)`.")


def check_tensor(value: object, subject: str) -> None:
    """Raise a UserError, which begins with `subject`, if a value is no tensor, or stores other than all its values."""
    if type(value).__name__ == "ndarray":
        raise UserError(f"{subject} a numpy array; pass torch.from_numpy(...).")
    if not isinstance(value, Tensor):
        raise UserError(f"{subject} a {type(value).__name__}; pass a torch.Tensor.")
    if value.is_quantized:
        raise UserError(f"{subject} a quantized tensor; pass its `.dequantize()`.")
    if value.is_nested or value.layout is not torch.strided:
        raise UserError(f"{subject} a tensor of layout {value.layout}, or nested; pass a dense one of one shape.")


def _check_batch(values: Tensor, what: str) -> None:
    if values.shape[0] == 0:
        raise UserError(f"The batch of {what} is empty: it is {tuple(values.shape)}; B must be 1 or more.")


def can_be_looked_at(x: Tensor) -> bool:
    """Whether there are values that can be read at once: not in traced code, under `vmap`, and outside the CPU."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if torch._C._are_functorch_transforms_active() or type(x) is not Tensor:
        return False
    return x.device.type == "cpu" and x.numel() > 0


def _looks_like_levels(video: Tensor) -> bool:
    """Whether a sample of the values seems to lie in [0, 255] instead of [-1, 1]; false if they cannot be looked at."""
    if not can_be_looked_at(video):
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
