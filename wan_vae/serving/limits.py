"""What a server takes on, and how it refuses the rest: before anything is read or allocated where a request tells."""

import hmac
import math
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.validation import check_latents, check_video

DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes of tensors that are sent, by diffusers' names; its fourth, uint8, is for answers."""


class RefusedError(UserError):
    """A request is not served; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Most of everything that a request may ask for.

    Attributes:
        body: Bytes of a request's body, and of an answer that is a tensor.
        pixels: Of one picture.
        frames: Of all clips of a request together.
        waiting: Requests that are read, wait, run or are being answered, together.
        seconds: From a request's head to the start of its answer, or for a stream to the end of its work.
    """

    body: int = 2**29
    pixels: int = 2**21
    frames: int = 10_000
    waiting: int = 64
    seconds: float = 600.0

    def check_body(self, length: int) -> None:
        """Raise a RefusedError if a body has too many bytes."""
        if length > self.body:
            raise RefusedError(413, f"The body has {length} bytes; up to {self.body} are taken.")

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Raise a RefusedError if there are too many frames, or pixels in one of them."""
        if height * width > self.pixels:
            raise RefusedError(
                413, f"Pictures of {width}x{height} are too large; up to {self.pixels} pixels are taken."
            )
        if frames > self.frames:
            raise RefusedError(413, f"{frames} frames are too many; up to {self.frames} are taken.")

    def check_answer(self, size: int, cure: str) -> None:
        """Raise a RefusedError if an answer that is a tensor has too many bytes."""
        if size > self.body:
            raise RefusedError(413, f"The answer would have {size} bytes, but up to {self.body} are given; {cure}.")


@dataclass(frozen=True)
class TensorHead:
    """Shape and dtype of a tensor whose bytes follow in a request's body.

    Raises:
        RefusedError: It is too large.
        UserError: The shape is none.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    limits: Limits

    def __post_init__(self) -> None:
        if len(self.shape) != 5 or min(self.shape) < 1:
            raise RefusedError(422, f"The shape is {self.shape}; it must have five sizes above 0.")
        self.limits.check_body(self.bytes)

    @property
    def bytes(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_length(self, length: int) -> None:
        """Raise a RefusedError if a body has another number of bytes."""
        if length != self.bytes:
            name = str(self.dtype).removeprefix("torch.")
            raise RefusedError(422, f"The body has {length} bytes, but {list(self.shape)} of {name} are {self.bytes}.")

    def check_latents(self, config: VAEConfig) -> tuple[int, int, int, int]:
        """Return clips, frames of each, height and width of what latents decode to."""
        latents = torch.empty(self.shape, dtype=self.dtype, device="meta")
        check_latents(latents, config, whole=True)
        batch, _, count, height, width = self.shape
        frames, side = 1 + (count - 1) * config.temporal_compression, config.spatial_compression * config.output_upscale
        self.limits.check_clip(batch * frames, height * side, width * side)
        return batch, frames, height * side, width * side

    def check_video(self, config: VAEConfig) -> None:
        """Raise a UserError if a video is not one that a model encodes."""
        check_video(torch.empty(self.shape, dtype=self.dtype, device="meta"), config, whole=True)
        batch, _, frames, height, width = self.shape
        self.limits.check_clip(batch * frames, height, width)


def shape_of(sizes: Sequence[int], dtype: str, limits: Limits) -> TensorHead:
    """Read the parameters `shape` and `dtype`."""
    if dtype not in DTYPES:
        raise RefusedError(422, f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    return TensorHead(tuple(sizes), DTYPES[dtype], limits)


def is_authorized(header: str | None, token: str) -> bool:
    """Whether a header Authorization holds the token: as bearer, or as the password of `http://any:TOKEN@host`."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() == "basic":
        try:
            value = b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode(), token.encode())
