"""The last inputs of a stream: from these, its caches are computed again after a pass that failed half-way."""

from collections import deque
from functools import cached_property

import torch
from torch import Tensor

from wan_vae.model.autoencoder import Autoencoder, temporal_reach

_MOST_BYTES = 2**31  # of host memory; frames of 1080p fit in half precision


class InputHistory:
    """Keeps, in host memory, as many inputs as the caches depend on.

    A pass overwrites the caches layer by layer. A second set of them would take 2.4 (encoding) or 4.0 GiB (decoding)
    of a GPU at 720p in bfloat16, where a pass of one latent takes 6.9 or 8.5 GiB. Inputs take none of it: they have 3
    or 16 channels, and layers look two frames back.

    Args:
        model: The model.
        encodes: Whether the inputs are frames instead of latents.
        keep: Whether inputs of earlier pushes will be asked for: not where a clip comes in one.
    """

    def __init__(self, model: Autoencoder, *, encodes: bool, keep: bool) -> None:
        self._model = model
        self._encodes = encodes
        self._keep = keep
        self._pieces: deque[Tensor] = deque()

    @cached_property
    def _most(self) -> int:
        """Frames that decide the caches, after one that stands for the clip's first."""
        config, model = self._model.config, self._model
        if not self._encodes:
            return 1 + temporal_reach(model.decoder, 1)
        unit = config.temporal_compression
        return 1 + unit * temporal_reach(model.encoder, unit)

    @property
    def _dtype(self) -> torch.dtype:
        """What a pass converts its input to first."""
        return self._model.dtype if self._encodes else self._model.decoder_dtype

    @property
    def _kept(self) -> int:
        return sum(piece.shape[2] for piece in self._pieces)

    @property
    def _bytes(self) -> int:
        return sum(piece.nbytes for piece in self._pieces)

    def append(self, x: Tensor) -> None:
        """Copy the inputs (B, C, n, H, W) of passes that are done."""
        if not self._keep or x.shape[2] == 0:
            return
        # Without blocking, the copy goes to pinned memory.
        self._pieces.append(x[:, :, -self._most :].to("cpu", self._dtype, non_blocking=True, copy=True))
        while self._pieces and (self._kept - self._pieces[0].shape[2] >= self._most or self._bytes > _MOST_BYTES):
            self._pieces.popleft()

    def covers(self, before: int, recent: int) -> bool:
        """Whether enough inputs are known: `before` were in earlier pushes, and the caller has `recent` later ones."""
        return self._kept + recent >= min(before + recent, self._most)

    def last(self, recent: Tensor) -> Tensor:
        """Return the inputs that decide the caches after `recent`, in host memory."""
        if recent.is_cuda:
            torch.cuda.synchronize(recent.device)  # copies may be on their way
        pieces = [*self._pieces, recent[:, :, -self._most :].to("cpu", self._dtype)]
        return torch.cat(pieces, dim=2)[:, :, -self._most :]
