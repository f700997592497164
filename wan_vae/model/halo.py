"""What lies beyond the edges of the tensor a layer was given.

Every layer of the network is local, the attention in the middle aside. Whether a clip is processed whole or as a
stream, in tiles or on several devices therefore comes down to one thing: what a layer finds when it looks past the edge
of its input. A halo answers that, is handed down the forward pass, and is the only object that knows; layers and models
have no modes and keep no state. In time it answers itself, in space it asks its neighbors.

How far a layer looks beyond its input, and what it does to its input first.

What lies beyond the edges of a tensor in space: nothing, or pixels that somebody else holds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.errors import UserError
from wan_vae.model.stages import LocalStage, StageFunction, group_by_time, peak_channels
from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.ops.memory_estimator import device_of
from wan_vae.ops.workspace import Workspace


class Padding(NamedTuple):
    """How far a layer looks beyond its input: frames before it, pixels around it."""

    before: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def beyond(self, known: "Padding") -> "Padding":
        """Return what is left of it beyond `known`."""
        return Padding(*(whole - part for whole, part in zip(self, known, strict=True)))


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


class Neighbors(Protocol):
    """Who holds the pixels around those of a halo's tensors. All tensors are (B, C, T, H, W) unless told otherwise."""

    def margin(self, reach: Padding) -> Padding:
        """Return the part of `reach` in space that `pad` fills; beyond the rest there is nothing."""

    def pad(self, out: Tensor, x: Tensor, margin: Padding, activation: Activation | None) -> None:
        """Write `activation(x)` to the middle of `out`, and around it what lies within `margin` of it. No gradients."""

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Padding]:
        """Return `x` with all pixels that lie within `margin` of it, and how many these are on each side.

        They are fewer where the picture ends. No gradients.
        """

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        """Take a value (n, 1, h * w, C) for each pixel of the latents' grid and return those of the whole picture.

        Their order is not that of the picture.
        """

    def max_over_ranks(self, values: int) -> int:
        """Return how many values a tensor has with whoever has most, if it has `values` here."""


class NoNeighbors:
    """Nothing lies beyond any edge."""

    def margin(self, reach: Padding) -> Padding:
        return Padding()

    def pad(self, out: Tensor, x: Tensor, margin: Padding, activation: Activation | None) -> None:
        write(out, x, activation)

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Padding]:
        return x, Padding()

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        return x

    def max_over_ranks(self, values: int) -> int:
        return values


def target_bytes(device: torch.device) -> int:
    """Return the size of a tensor that keeps the device busy. On a CPU, less still would not stay in the cache."""
    return 2**29 if device.type == "cuda" else 2**25


class PaddedInput(NamedTuple):
    """A layer's input with what is known to lie around it.

    Attributes:
        pieces: (B, C, n, H, W) each, one after the other in time.
        zeros: The part of the layer's reach where the clip ends and nothing lies.
    """

    pieces: list[Tensor]
    zeros: Padding


class Halo:
    """The halo of a whole clip: nothing lies before it. A pass with it is a pure function.

    Args:
        neighbors: What lies around its pixels; default nothing.
    """

    def __init__(self, neighbors: Neighbors | None = None) -> None:
        self.workspace = Workspace()
        self.neighbors = NoNeighbors() if neighbors is None else neighbors

    @property
    def at_start(self) -> bool:
        """Whether the first frame of the tensors of this pass is the clip's first frame."""
        return True

    @property
    def repeatable(self) -> bool:
        """Whether asking twice gives the same answer, as recomputing activations in the backward pass needs."""
        return True

    @property
    def cached_bytes(self) -> int:
        """How much memory what is remembered takes."""
        return 0

    def pad(
        self, layer: nn.Module, x: Tensor, reach: Padding, activation: Activation | None = None, *, apart: bool = False
    ) -> PaddedInput:
        """Put around `x` (B, C, T, H, W) what is known to lie within `reach` of it.

        Args:
            layer: Who asks. What a halo remembers is kept by layer.
            x: The layer's input.
            reach: How far the layer looks.
            activation: What `x` has to pass through first.
            apart: Whether the layer takes frames wherever they are. Otherwise they come in one piece.
        """
        margin = self.neighbors.margin(reach)
        return PaddedInput([self._joined(None, x, margin, activation)], reach.beyond(margin))

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        """Take a value (n, 1, h * w, C) for each pixel of the latents' grid and return those of the whole picture."""
        return self.neighbors.all_gather_pixels(x)

    def run_global(self, stage: StageFunction, x: Tensor) -> Tensor:
        """Run a stage of the network that looks at whole frames."""
        return stage(x, self)

    def run_local(self, steps: Sequence[LocalStage], x: Tensor) -> Tensor:
        """Run steps of the network one after the other that look only so far around each pixel."""
        for step in steps:
            x = step.run(x, self)
        return x

    def _joined(self, past: Tensor | None, x: Tensor, margin: Padding, activation: Activation | None) -> Tensor:
        """Return `activation(x)` with `margin` around it, behind `past`, which has that margin already."""
        if needs_plain_ops():
            assert not any(margin), "neighbors give no gradients"
            x = x if activation is None else activation(x)
            return x if past is None else torch.cat([past, x], dim=2)
        if past is None and activation is None and not any(margin):
            return x
        known = 0 if past is None else past.shape[2]
        batch, channels, frames, height, width = x.shape
        size = (known + frames, margin.top + height + margin.bottom, margin.left + width + margin.right)
        joined = self.workspace.empty((batch, channels, *size), like=x)
        if past is not None:
            joined[:, :, :known] = past
        self.neighbors.pad(joined[:, :, known:], x, margin, activation)
        return joined


class CachedHalo(Halo):
    """The halo of one clip that arrives in chunks: before a chunk lie the last frames of the one before.

    One object serves one clip in one direction. Call `advance` after each chunk.
    """

    def __init__(self, neighbors: Neighbors | None = None) -> None:
        self._started = False
        # By layer, in pieces: (B, C, n, H, W) each, at most as many frames as it looks back at.
        self._remembered: dict[nn.Module, list[Tensor]] = {}
        # After that: what comes first goes first in the end, and a workspace can leave to others what nothing is in.
        super().__init__(neighbors)

    @property
    def at_start(self) -> bool:
        return not self._started

    @property
    def repeatable(self) -> bool:
        return False

    @property
    def cached_bytes(self) -> int:
        return sum(piece.nbytes for past in self._remembered.values() for piece in past)

    def pad(
        self, layer: nn.Module, x: Tensor, reach: Padding, activation: Activation | None = None, *, apart: bool = False
    ) -> PaddedInput:
        if reach.before == 0:
            return super().pad(layer, x, reach, activation, apart=apart)
        past = self._remembered.get(layer, [])
        margin = self.neighbors.margin(reach)
        zeros = reach.beyond(margin)
        zeros = zeros._replace(before=reach.before - sum(piece.shape[2] for piece in past))
        if apart and not any(margin):
            pieces = [*past, *self._in_pieces(x, reach.before, activation)]
            self._remembered[layer] = _last_frames(pieces, reach.before)
            return PaddedInput(pieces, zeros)
        joined = self._joined(past[0] if past else None, x, margin, activation)
        self._remember(layer, joined, reach.before)
        return PaddedInput([joined], zeros)

    def _in_pieces(self, x: Tensor, count: int, activation: Activation | None) -> list[Tensor]:
        """Return `activation(x)` with each of its last `count` frames in memory of its own, which may be remembered."""
        first = max(0, x.shape[2] - count)
        pieces = [(x[:, :, :first], False)] if first > 0 else []
        pieces += [(frame, True) for frame in torch.split(x[:, :, first:], 1, dim=2)]
        return [self._apart(part, activation, kept=kept) for part, kept in pieces]

    def _apart(self, x: Tensor, activation: Activation | None, *, kept: bool) -> Tensor:
        if activation is None and not kept:
            return x
        piece = self.workspace.empty(x.shape, like=x, persistent=kept)
        write(piece, x, activation)
        return piece

    def run_local(self, steps: Sequence[LocalStage], x: Tensor) -> Tensor:
        for run in group_by_time(steps):
            x = self._in_portions(run, x)
        return x

    def _in_portions(self, run: Sequence[LocalStage], x: Tensor) -> Tensor:
        # Where every frame stays one, they need not all be held at once, and tensors may be large.
        frame = peak_channels(run) * self.neighbors.max_over_ranks(x[:, :1, :1].numel()) * x.dtype.itemsize
        count = x.shape[2] if run[0].temporal else max(1, int(target_bytes(device_of(x)) / frame))
        if count >= x.shape[2] or needs_plain_ops():
            return super().run_local(run, x)
        result = None
        for start in range(0, x.shape[2], count):
            part = super().run_local(run, x[:, :, start : start + count])
            if result is None:
                result = self.workspace.empty((*part.shape[:2], x.shape[2], *part.shape[3:]), like=part)
            result[:, :, start : start + count] = part
            del part
        assert result is not None
        return result

    def _remember(self, layer: nn.Module, x: Tensor, count: int) -> None:
        missing = max(0, count - x.shape[2])
        last = x[:, :, -count:]
        if needs_plain_ops():
            # A copy, because a view would keep the whole chunk alive.
            self._remembered[layer] = [F.pad(last, (0, 0, 0, 0, missing, 0)).clone()]
            return
        if layer in self._remembered:
            (past,) = self._remembered[layer]
        else:
            batch, channels, _, height, width = x.shape
            past = self.workspace.empty_persistent((batch, channels, count, height, width), like=x)
            self._remembered[layer] = [past]
        past[:, :, :missing].zero_()
        past[:, :, missing:] = last

    def advance(self) -> None:
        """Mark the end of a chunk: what comes next is not the clip's start."""
        self._started = True

    def state_dict(self, model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """Return copies of what is remembered, contiguous (B, C, n, H, W), between two chunks.

        Args:
            model: By whose names of its layers to call it.
            prefix: What comes before these names.
        """
        names = {layer: name for name, layer in model.named_modules()}
        return {
            prefix + names[layer]: torch.cat(past, dim=2).clone(memory_format=torch.contiguous_format)
            for layer, past in self._remembered.items()
        }

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Remember copies of what another halo of the same model did, after its first chunk or later.

        Args:
            model: Whose layers will ask.
            state: What `state_dict` returned; entries without the prefix are left alone.
            prefix: What comes before the names of the layers.

        Raises:
            UserError: The model has no such layer.
        """
        layers = dict(model.named_modules())
        for name, past in state.items():
            if not name.startswith(prefix):
                continue
            layer = layers.get(name.removeprefix(prefix))
            if layer is None:
                raise UserError(f"The state has an entry {name!r}, but this model no such layer.")
            remembered = self.workspace.empty_persistent(tuple(past.shape), like=past)
            remembered.copy_(past)
            self._remembered[layer] = [remembered]
        self._started = True


def _last_frames(pieces: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the last `count` frames of pieces, or all there are."""
    last: list[Tensor] = []
    for piece in reversed(pieces):
        missing = count - sum(other.shape[2] for other in last)
        if missing > 0:
            last.insert(0, piece[:, :, -missing:])
    return last
