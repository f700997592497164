"""The dtypes that the encoder and the decoder compute in."""

from typing import NamedTuple

import torch

from wan_vae.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Dtypes(NamedTuple):
    """The dtypes of a model's halves: the arguments of `WanVAE.set_dtypes`."""

    encoder: torch.dtype
    decoder: torch.dtype

    def __str__(self) -> str:
        encoder, decoder = (str(dtype).removeprefix("torch.") for dtype in self)
        return encoder if encoder == decoder else f"{encoder} (encoder) and {decoder} (decoder)"


def choose_dtypes(dtype: str, device: torch.device) -> Dtypes:
    """Return the dtypes for a device.

    Args:
        dtype: "fp32", "bf16" or "fp16" for both halves, or "auto": bfloat16 where it is fast, except that CPUs encode
            in float32. Latents are kept and trained on, and only float32 is nearly lossless for them.
        device: Where the model computes.

    Raises:
        UserError: There is no such dtype.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"The dtype is {dtype!r}; it must be auto, {', '.join(DTYPES)}.")
        return Dtypes(DTYPES[dtype], DTYPES[dtype])
    if device.type == "cuda":
        return Dtypes(torch.bfloat16, torch.bfloat16)
    fast = device.type == "cpu" and _multiplies_bfloat16()
    return Dtypes(torch.float32, torch.bfloat16 if fast else torch.float32)


def _multiplies_bfloat16() -> bool:
    # Without these instructions bfloat16 is emulated in float32 and slower than it. Old versions of torch cannot tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
