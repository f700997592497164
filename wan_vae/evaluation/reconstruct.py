"""A clip through the network and back, each frame with its source at its side.

A frame and its reconstruction in one picture, side by side.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wan_vae.io.frames import Frames, FramesToTensors, tensors_to_frames

if TYPE_CHECKING:
    from wan_vae.sharding import ShardedVAE
    from wan_vae.vae import WanVAE

# Even, so that two pictures of an odd width make one of an even width, which every player shows.
GAP = 8
_GRAY = 128


def eight_bits(frames: Frames) -> NDArray[np.uint8]:
    """Round uint16 of full range to uint8, and leave uint8 as it is."""
    if frames.dtype == np.uint8:
        return frames.astype(np.uint8, copy=False)
    return ((frames.astype(np.uint32) + 128) // 257).astype(np.uint8)


def side_by_side_width(width: int) -> int:
    """Return how wide the picture is that `side_by_side` makes of reconstructions of this width, in pixels."""
    return 2 * width + GAP


def side_by_side(source: Frames, reconstruction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a frame (h, w, 3) on the left of its reconstruction (H, W, 3), with a thin gray gap between them.

    H and W are the same multiple of h and w: 1, or the upscaling of the decoder.

    Returns:
        (H, 2 W + GAP, 3) uint8.
    """
    scale = reconstruction.shape[0] // source.shape[0]
    # Where the decoder upscales, repeated pixels show what the network was given; interpolating would be an upscaler
    # of our own in the place of the source.
    left = eight_bits(source).repeat(scale, axis=0).repeat(scale, axis=1)
    gap = np.full((left.shape[0], GAP, 3), _GRAY, dtype=np.uint8)
    return np.concatenate([left, gap, reconstruction], axis=1)


def reconstruct_frames(
    vae: "WanVAE | ShardedVAE",
    chunks: Iterable[Frames],
    width: int,
    height: int,
    budgets: tuple[int, int] | None = None,
) -> Iterator[tuple[Frames, NDArray[np.uint8]]]:
    """Encode and decode a clip as a stream, in memory that does not grow with its length.

    Args:
        vae: The model.
        chunks: Arrays (n, h, w, 3), uint8 or uint16, RGB of full range. n of as many as go through the network
            together (`vae.latents_at_once`) is best.
        width: Of the decoded frames: w times `config.output_upscale`.
        height: Likewise, of h.
        budgets: Of memory, in bytes, for encoding and decoding.

    Yields:
        Each frame as it came, (h, w, 3), and as it was decoded, (height, width, 3).

    Raises:
        UserError: The network gave NaN.
    """
    waiting: deque[Frames] = deque()

    def kept() -> Iterator[Frames]:
        for chunk in chunks:
            waiting.extend(chunk)
            yield chunk

    fitted = FramesToTensors(kept(), vae.config, vae.device)
    encoding, decoding = (None, None) if budgets is None else budgets
    videos = vae.decode_stream(vae.encode_stream(fitted, memory=encoding), memory=decoding)
    for frames in tensors_to_frames(videos, width, height, vae.device):
        # Padded frames come out only after the last true one, when none waits any more.
        for frame in frames[: len(waiting)]:
            yield waiting.popleft(), frame
