"""The two ways through the network, and what becomes of a picture's size on them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wan_vae.clip_stream import ClipStream, DecodeStream, EncodeStream

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE


class Way(NamedTuple):
    """A way through the network.

    Attributes:
        stream: Begins to go it, with the options of `EncodeStream` and `DecodeStream`.
        check: Raises a UserError for chunks that do not fit.
        scale: Pixels of what enters to a side of a latent.
        becomes: Pixels of what comes out.
    """

    stream: Callable[..., ClipStream]
    check: Callable[[Tensor], None]
    scale: int
    becomes: int

    def latents(self, shape: torch.Size) -> tuple[int, int]:
        """Return how many rows and columns of latents enter in a tensor (B, C, T, H, W) of this shape."""
        return shape[3] // self.scale, shape[4] // self.scale


def encoding(vae: "WanVAE") -> Way:
    """Return the way from frames to latents."""
    check = partial(vae._check_video, whole=False)
    return Way(partial(EncodeStream, vae), check, vae.config.spatial_compression, 1)


def decoding(vae: "WanVAE") -> Way:
    """Return the way from latents to frames."""
    check = partial(vae._check_latents, whole=False)
    return Way(partial(DecodeStream, vae), check, 1, vae.config.spatial_compression * vae.config.output_upscale)
