"""What lies beyond the edges of the tensor a layer was given.

Every layer of the network is local, the attention in the middle aside. Whether a clip is processed whole or as a stream
(and, with the same questions, in tiles or on several devices) therefore comes down to one thing: what a layer finds
when it looks past the edge of its input. A halo answers that, is handed down the forward pass, and is the only object
that knows; layers and models have no modes and keep no state.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Reach(NamedTuple):
    """How far a layer looks beyond its input: frames before it, pixels around it."""

    before: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


class Halo:
    """The halo of a whole clip: nothing lies beyond any edge. Stateless, so a pass with it is a pure function."""

    @property
    def at_start(self) -> bool:
        """Whether the first frame of the tensors of this pass is the clip's first frame."""
        return True

    @property
    def repeatable(self) -> bool:
        """Whether asking twice gives the same answer, as recomputing activations in the backward pass needs."""
        return True

    def surround(self, layer: nn.Module, x: Tensor, reach: Reach) -> tuple[Tensor, Reach]:
        """Put around `x` (B, C, T, H, W) what is known to lie within `reach` of it.

        Args:
            layer: Who asks. Each layer may ask once a pass, and what a halo remembers is kept by layer.
            x: The layer's input.
            reach: How far the layer looks.

        Returns:
            The extended tensor, and the part of `reach` where the clip ends and nothing lies.
        """
        return x, reach

    def align(self, skip: Tensor, main: Tensor) -> Tensor:
        """Return the part of `skip` that covers the same pixels as `main`, whose layers may have used up its margin."""
        return skip


class StreamHalo(Halo):
    """The halo of one clip that arrives in chunks: before a chunk lie the last frames of the one before.

    One object serves one clip in one direction. Call `advance` after each chunk.
    """

    def __init__(self) -> None:
        self._started = False
        self._remembered: dict[nn.Module, Tensor] = {}

    @property
    def at_start(self) -> bool:
        return not self._started

    @property
    def repeatable(self) -> bool:
        return False

    def surround(self, layer: nn.Module, x: Tensor, reach: Reach) -> tuple[Tensor, Reach]:
        if reach.before == 0:
            return x, reach
        past = self._remembered.get(layer)
        known = 0
        if past is not None:
            known = past.shape[2]
            x = torch.cat([past, x], dim=2)
        # A copy, because a view would keep the whole chunk alive.
        self._remembered[layer] = x[:, :, -reach.before :].clone()
        return x, reach._replace(before=reach.before - known)

    def advance(self) -> None:
        """Mark the end of a chunk: what comes next is not the clip's start."""
        self._started = True
