"""How much of a clip goes through the network together."""

from typing import TYPE_CHECKING, NamedTuple

import torch

from wan_vae.errors import UserError
from wan_vae.inference.tiling import Tiling
from wan_vae.model.halo import Neighbors, target_bytes

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

_MOST_LATENTS_AT_ONCE = 8


class ChunkSize(NamedTuple):
    """How a clip goes through the network.

    Attributes:
        group: How many frames go together after the first: a multiple of the temporal compression when encoding, any
            number of latents when decoding.
        is_light: Whether a pass gives a GPU so little to do that it waits for the next launch.
        tiling: How pictures are cut; None if they are not.
    """

    group: int
    launch_bound: bool = False
    tiling: Tiling | None = None


def choose_chunk_size(
    vae: "WanVAE",
    latent_pixels: int,
    latents: int | None,
    *,
    unit: int = 1,
    neighbors: Neighbors | None = None,
    device: torch.device | None = None,
) -> ChunkSize:
    """Return how whole pictures go through a model.

    Args:
        vae: The model.
        latent_pixels: Batch x height x width of a latent.
        latents: How many of them go together; default one, and on a GPU as many as keep it busy.
        unit: How many frames go in for each of them after the first.
        neighbors: What lies around the picture, if it is a part of a larger one.
        device: Where that is computed, if not where the weights are.
    """
    device = vae.device if device is None else device
    if neighbors is not None:
        # Whoever exchanges pixels must do so in step: the largest part sets the pace.
        latent_pixels = neighbors.max_over_ranks(latent_pixels)
    # As many keep the device busy; more would only take more memory.
    per_pixel = max(
        vae.encoder.activation_elements * vae.dtype.itemsize,
        vae.decoder.activation_elements * vae.decoder_dtype.itemsize,
    )
    fitting = max(1, target_bytes(device) // max(1, latent_pixels * per_pixel))
    if latents is None:
        latents = 1 if device.type == "cpu" else min(fitting, _MOST_LATENTS_AT_ONCE)
    # What is exchanged on the way cannot be recorded with it.
    return ChunkSize(group=latents * unit, launch_bound=latents < fitting and neighbors is None)


def check_latents_per_pass(latents_per_pass: int | None) -> int | None:
    """Return how many latents are to go together.

    Raises:
        UserError: It is less than 1.
    """
    if latents_per_pass is not None and latents_per_pass < 1:
        raise UserError(f"latents_per_pass is {latents_per_pass}; it must be at least 1.")
    return latents_per_pass
