"""How far a layer looks beyond its input, and what it does to its input first."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Reach(NamedTuple):
    """How far a layer looks beyond its input: frames before it, pixels around it."""

    before: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def beyond(self, known: "Reach") -> "Reach":
        """Return what is left of it beyond `known`."""
        return Reach(*(whole - part for whole, part in zip(self, known, strict=True)))


class Activation(Protocol):
    """What is done to a layer's input before anything else: a function of each pixel alone."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the result to `out`, without gradients."""


def write(out: Tensor, x: Tensor, activation: Activation | None) -> None:
    """Write `activation(x)`, or `x`, to `out`, without gradients."""
    if activation is None:
        out.copy_(x)
    else:
        activation.into(out, x)
