"""The two ways through the network, and what becomes of a picture's size on them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from wan_vae.checks import check_latents, check_video
from wan_vae.clip_stream import ClipStream, DecodeStream, EncodeStream
from wan_vae.model.neighbors import Neighbors
from wan_vae.model.tiling import Tiling
from wan_vae.posterior import Posterior

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

Call = Literal["encode", "decode"]


class Way(NamedTuple):
    """A way through the network.

    Attributes:
        call: "encode" or "decode".
        stream: Begins to go it, with the options of `EncodeStream` and `DecodeStream`.
        whole: Goes it with all of a clip; takes that, how many latents go together, the tiling, and the neighbors.
        check: Raises a UserError for chunks that do not fit.
        scale: Pixels of what enters to a side of a latent.
        becomes: Pixels of what comes out.
    """

    call: Call
    stream: Callable[..., ClipStream]
    whole: Callable[[Tensor, int | None, Tiling | None, Neighbors], Tensor]
    check: Callable[[Tensor], None]
    scale: int
    becomes: int

    def latents(self, shape: torch.Size) -> tuple[int, int]:
        """Return how many rows and columns of latents enter in a tensor (B, C, T, H, W) of this shape."""
        return shape[3] // self.scale, shape[4] // self.scale


def going(vae: "WanVAE", call: Call) -> Way:
    """Return the way that a call goes."""
    if call == "decode":
        check = partial(check_latents, config=vae.config, whole=False)
        scale = vae.config.spatial_compression * vae.config.output_upscale
        return Way(call, partial(DecodeStream, vae), vae._decoded, check, 1, scale)

    def whole(video: Tensor, latents: int | None, tiling: Tiling | None, neighbors: Neighbors) -> Tensor:
        moments = vae._moments(video, latents, tiling, neighbors)
        return vae.normalize(Posterior.from_moments(moments).mode())

    check = partial(check_video, config=vae.config, whole=False)
    return Way(call, partial(EncodeStream, vae), whole, check, vae.config.spatial_compression, 1)
