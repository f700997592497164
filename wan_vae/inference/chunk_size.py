"""How many latents of a clip go through the network in one pass."""

from typing import NamedTuple

import torch

from wan_vae.arguments import check_count
from wan_vae.inference.budget import free_memory
from wan_vae.inference.tiling import Tiling
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.halo import Neighbors, target_bytes

_MAX_LATENTS = 8
# Every convolution copies the last frames of the pass before it, so large passes pay on GPUs, as far as memory goes.
_LARGEST_TENSOR = 2**31  # bytes, so that the frames of a pass have no 2^31 elements, which cuDNN is slow at
_FREE_PER_TENSOR = 12  # a pass takes nine to ten times its largest tensor


class ChunkSize(NamedTuple):
    """How a clip is cut into passes."""

    frames: int  # per pass after the first: a multiple of the temporal compression, or any number of latents
    launch_bound: bool = False  # a pass is so small that a GPU waits for kernel launches: a CUDA graph pays
    tiling: Tiling | None = None  # None for whole pictures
    tensor_bytes: int | None = None  # of tensors that stages split by frames; None for what keeps the device busy


def choose_chunk_size(
    model: Autoencoder,
    latent_pixels: int,
    latents: int | None,
    *,
    in_frames: int = 1,
    neighbors: Neighbors | None = None,
    device: torch.device | None = None,
    free: int | None = None,
) -> ChunkSize:
    """Return how whole pictures pass through a model.

    Args:
        model: The model.
        latent_pixels: Batch x height x width of a latent frame.
        latents: Latents per pass; default as many as keep the device busy: on a CPU one, unless pictures are small; on
            a GPU more where memory is free.
        in_frames: Frames of the input per latent.
        neighbors: The holders of the rest of the picture, where this is a part of one.
        device: Where the passes run; default the device of the weights.
        free: Bytes that a GPU has left; default what it says. Of parts of a picture none counts, since all ranks must
            take the same number.
    """
    device = model.device if device is None else device
    # All ranks must take the same number of latents, or they would wait for each other: the largest part decides.
    pixels = latent_pixels if neighbors is None else neighbors.max_over_ranks(latent_pixels)
    pixel_bytes = max(
        model.encoder.activation_elements * model.dtype.itemsize,
        model.decoder.activation_elements * model.decoder_dtype.itemsize,
    )
    latent_bytes, least = max(1, pixels * pixel_bytes), target_bytes(device)
    # As many keep the device busy; more would only take more memory.
    busy = max(1, least // latent_bytes)
    if latents is None:
        most = least
        if device.type == "cuda" and neighbors is None:
            if free is None:
                free = free_memory(device) if torch.cuda.is_available() else 0
            while 2 * most <= _LARGEST_TENSOR and free >= 2 * most * _FREE_PER_TENSOR:
                most *= 2
        latents = min(max(1, most // latent_bytes), _MAX_LATENTS)
    tensor_bytes = max(least, min(_LARGEST_TENSOR, latents * latent_bytes)) if device.type == "cuda" else None
    # A CUDA graph cannot contain an exchange between processes.
    launch_bound = latents < busy and neighbors is None
    return ChunkSize(latents * in_frames, launch_bound=launch_bound, tensor_bytes=tensor_bytes)


def check_latents_per_pass(latents: int | None) -> int | None:
    """Return `latents` if it is None or a whole number above 0.

    Raises:
        UserError: It is not.
    """
    return None if latents is None else check_count("latents_per_pass", latents)
