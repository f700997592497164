"""What one device has of a picture that several share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from wan_vae.model.neighbors import Alone, Neighbors
from wan_vae.model.reach import Reach


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Part:
    """A part of a picture, by default all of it. Tensors are (B, C, T, H, W).

    Attributes:
        neighbors: Who holds the pixels around it.
        beyond: How many rows and columns of latents the picture has on each side of it.
        cut: Takes what is given to the call, and returns this part of it.
        joined: Takes this part of the result, and returns what the call returns.
    """

    neighbors: Neighbors = field(default_factory=Alone)
    beyond: Reach = field(default_factory=Reach)
    cut: Callable[[Tensor], Tensor] = _as_it_is
    joined: Callable[[Tensor], Tensor] = _as_it_is
