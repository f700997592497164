"""What lies beyond the edges of a tensor in space: nothing, or pixels that somebody else holds."""

from typing import Protocol

from torch import Tensor

from wan_vae.model.reach import Activation, Reach, write


class Neighbors(Protocol):
    """Who holds the pixels around those of a halo's tensors. All tensors are (B, C, T, H, W) unless told otherwise."""

    def margin(self, reach: Reach) -> Reach:
        """Return the part of `reach` in space that `surround` fills; beyond the rest there is nothing."""

    def surround(self, out: Tensor, x: Tensor, margin: Reach, activation: Activation | None) -> None:
        """Write `activation(x)` to the middle of `out`, and around it what lies within `margin` of it. No gradients."""

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Reach]:
        """Return `x` with all pixels that lie within `margin` of it, and how many these are on each side.

        They are fewer where the picture ends. No gradients.
        """

    def everywhere(self, x: Tensor) -> Tensor:
        """Take a value (n, 1, h * w, C) for each pixel of the latents' grid and return those of the whole picture.

        Their order is not that of the picture.
        """

    def most_values(self, values: int) -> int:
        """Return how many values a tensor has with whoever has most, if it has `values` here."""


class Alone:
    """Nothing lies beyond any edge."""

    def margin(self, reach: Reach) -> Reach:
        return Reach()

    def surround(self, out: Tensor, x: Tensor, margin: Reach, activation: Activation | None) -> None:
        write(out, x, activation)

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Reach]:
        return x, Reach()

    def everywhere(self, x: Tensor) -> Tensor:
        return x

    def most_values(self, values: int) -> int:
        return values
