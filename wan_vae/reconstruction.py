"""A clip through the network and back, each frame with its source at its side."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wan_vae.fitting import FittedClip, Frames, cropped_frames

if TYPE_CHECKING:
    from wan_vae.shards.led import LeadVAE
    from wan_vae.vae import WanVAE


def reconstructed(
    vae: "WanVAE | LeadVAE",
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

    fitted = FittedClip(kept(), vae.config, vae.device)
    encoding, decoding = (None, None) if budgets is None else budgets
    videos = vae.decode_stream(vae.encode_stream(fitted, memory=encoding), memory=decoding)
    for frames in cropped_frames(videos, width, height, vae.device):
        # Padded frames come out only after the last true one, when none waits any more.
        for frame in frames[: len(waiting)]:
            yield waiting.popleft(), frame
