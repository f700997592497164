"""Encoding and decoding a clip as a stream, and pictures of a frame next to its reconstruction."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.io.color import eight_bits
from wan_vae.io.frames import Frames, FramesToTensors, tensors_to_frames

if TYPE_CHECKING:
    from wan_vae.sharding import ShardedVAE
    from wan_vae.tiny import TinyVAE
    from wan_vae.vae import WanVAE

# Even, so that side-by-side pictures have an even width, which video players need, for every width of a frame.
GAP = 8
_GRAY = 128


def side_by_side_width(width: int) -> int:
    """Return the width of the pictures of `side_by_side` for reconstructions of this width, in pixels."""
    return 2 * width + GAP


def side_by_side(source: Frames, reconstruction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame (h, w, c) to the left of its reconstruction (H, W, c), with a gray gap: (H, 2 W + GAP, c).

    H and W are h and w times the decoder's `output_upscale`.
    """
    scale = reconstruction.shape[0] // source.shape[0]
    # Pixels are repeated rather than interpolated, so that the left half shows exactly what the network was given.
    left = eight_bits(source).repeat(scale, axis=0).repeat(scale, axis=1)
    gap = np.full((left.shape[0], GAP, left.shape[2]), _GRAY, dtype=np.uint8)
    gap[..., 3:] = 255
    return np.concatenate([left, gap, reconstruction], axis=1)


def reconstruct_frames(
    vae: "WanVAE | TinyVAE | ShardedVAE",
    chunks: Iterable[Frames],
    width: int,
    height: int,
    budgets: tuple[int, int] | None = None,
    on_latents: Callable[[Tensor], object] | None = None,
) -> Iterator[tuple[Frames, NDArray[np.uint8]]]:
    """Encode and decode a clip as a stream; memory does not grow with the clip's length.

    Args:
        vae: The model.
        chunks: Arrays (n, h, w, 3), full-range RGB in uint8 or uint16, or of 4 channels for a model of RGBA. Fastest is
            n = `vae.default_chunk_size(h, w)` times `vae.config.temporal_compression`.
        width: Of the decoded frames: w times `config.output_upscale`.
        height: Of the decoded frames: h times `config.output_upscale`.
        budgets: Memory for encoding and for decoding, in bytes.
        on_latents: Called with the normalized latents (1, z, n, h, w) of each chunk before they are decoded.

    Yields:
        Each frame as it came, (h, w, c), and decoded, (height, width, c) uint8.

    Raises:
        UserError: The decoded video contains NaN.
    """
    sources: deque[Frames] = deque()

    def queued() -> Iterator[Frames]:
        for chunk in chunks:
            sources.extend(chunk)
            yield chunk

    fitted = FramesToTensors(queued(), vae.config, vae.device)
    encode_budget, decode_budget = budgets or (None, None)
    latents = vae.encode_stream(fitted, memory=encode_budget)
    if on_latents is not None:
        latents = _shown(latents, on_latents)
    videos = vae.decode_stream(latents, memory=decode_budget)
    for frames in tensors_to_frames(videos, width, height, vae.device):
        # Frames added to complete the last latent come out after the last true one, so they have no source.
        for frame in frames[: len(sources)]:
            yield sources.popleft(), frame


def _shown(latents: Iterable[Tensor], on_latents: Callable[[Tensor], object]) -> Iterator[Tensor]:
    for chunk in latents:
        on_latents(chunk)
        yield chunk
