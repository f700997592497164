"""A frame and its reconstruction in one picture, side by side."""

import numpy as np
from numpy.typing import NDArray

from wan_vae.fitting import Frames

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
