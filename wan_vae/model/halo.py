"""What lies beyond the edges of the tensor a layer was given.

Every layer of the network is local, the attention in the middle aside. Whether a clip is processed whole or as a
stream, in tiles or on several devices therefore comes down to one question: what does a layer find when it looks past
the edge of its input? A halo answers that. It is handed down the forward pass and is the only object that knows; layers
and models have no modes and keep no state. A halo answers for time itself and asks its `Neighbors` for space.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.errors import UserError
from wan_vae.model.stages import LocalStage, StageFunction, group_by_time, peak_channels
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.memory_estimator import device_of, representative_passes
from wan_vae.ops.workspace import Workspace


class Padding(NamedTuple):
    """Frames before a tensor and pixels around it: what a layer needs, what is known, or what is zero."""

    before: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def minus(self, known: "Padding") -> "Padding":
        """Return the padding that remains outside `known`."""
        return Padding(*(needed - part for needed, part in zip(self, known, strict=True)))


class Activation(Protocol):
    """A pointwise function applied to a layer's input, such as norm and SiLU."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the result to `out`, without gradients."""


def write(out: Tensor, x: Tensor, activation: Activation | None) -> None:
    """Write `activation(x)`, or `x` where there is no activation, to `out`; without gradients."""
    if activation is None:
        out.copy_(x)
    else:
        activation.into(out, x)


@runtime_checkable
class Neighbors(Protocol):
    """The holders of the pixels around a tensor. All tensors are (B, C, T, H, W) unless stated otherwise."""

    def margin(self, padding: Padding) -> Padding:
        """Return the spatial part of `padding` that `pad` fills; the rest lies outside the picture."""

    def pad(self, out: Tensor, x: Tensor, margin: Padding, activation: Activation | None) -> None:
        """Write `activation(x)` to the middle of `out` and the neighbors' pixels to its margin. No gradients."""

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Padding]:
        """Return `x` extended by up to `margin` pixels on each side, and by how many on each.

        There are fewer where the picture ends. No gradients.
        """

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        """Take (n, 1, h * w, C), one value per latent pixel of this part, and return those of the whole picture.

        Their order is not that of the picture.
        """

    def max_over_ranks(self, elements: int) -> int:
        """Return the size in elements of the largest part's tensor, where this part's has `elements`."""


class NoNeighbors:
    """A picture with nothing around it."""

    def margin(self, padding: Padding) -> Padding:
        return Padding()

    def pad(self, out: Tensor, x: Tensor, margin: Padding, activation: Activation | None) -> None:
        write(out, x, activation)

    def around(self, x: Tensor, margin: int) -> tuple[Tensor, Padding]:
        return x, Padding()

    def all_gather_pixels(self, x: Tensor) -> Tensor:
        return x

    def max_over_ranks(self, elements: int) -> int:
        return elements


class PaddedInput(NamedTuple):
    """A layer's input together with everything known around it.

    Attributes:
        pieces: Consecutive in time, (B, C, n, H, W) each.
        zero_padding: The part of the layer's padding that lies outside the clip.
    """

    pieces: list[Tensor]
    zero_padding: Padding


class Halo:
    """The halo of a whole clip, before which there is nothing. A forward pass with it is a pure function.

    Args:
        neighbors: The holders of the pixels around the clip; default none.

    Attributes:
        at_start: Whether the first frame of this pass's tensors is the clip's first frame.
        repeatable: Whether the same question always has the same answer, as gradient checkpointing requires.
    """

    at_start = True
    repeatable = True

    def __init__(self, neighbors: Neighbors | None = None) -> None:
        self.workspace = Workspace()
        self.neighbors = NoNeighbors() if neighbors is None else neighbors

    @property
    def cached_bytes(self) -> int:
        """Bytes held by the temporal cache."""
        return 0

    def pad(
        self,
        layer: nn.Module,
        x: Tensor,
        padding: Padding,
        activation: Activation | None = None,
        *,
        split: bool = False,
    ) -> PaddedInput:
        """Return `activation(x)` with everything known within `padding` of it.

        Args:
            layer: The layer that asks; the temporal cache is kept per layer.
            x: The layer's input (B, C, T, H, W).
            padding: The frames and pixels that the layer needs around `x`.
            activation: Applied to `x` first.
            split: Whether the layer accepts a list of frames anywhere in memory; otherwise they come in one tensor.
        """
        margin = self.neighbors.margin(padding)
        return PaddedInput([self._joined(None, x, margin, activation)], padding.minus(margin))

    def advance(self) -> None:
        """Mark the end of a chunk: the next one is not the clip's start. A whole clip has one chunk."""

    def run_global(self, stage: StageFunction, x: Tensor) -> Tensor:
        """Run a stage that needs whole frames."""
        return stage(x, self)

    def run_local(self, stages: Sequence[LocalStage], x: Tensor) -> Tensor:
        """Run consecutive stages that each look only a limited number of pixels around every pixel."""
        for stage in stages:
            x = stage.run(x, self)
        return x

    def _joined(self, past: Tensor | None, x: Tensor, margin: Padding, activation: Activation | None) -> Tensor:
        """Return `activation(x)` with `margin` around it, behind `past`, which already has that margin."""
        if needs_plain_ops():
            if any(margin):
                raise UserError(
                    "A part of a picture is computed without gradients, autocast and torch.compile; leave them and call"
                    " again."
                )
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
    """The halo of a clip that arrives in chunks: before a chunk lie the last frames of the previous one.

    The cache is Wan's `feat_cache`, kept per layer. One object serves one clip in one direction; call `advance` after
    each chunk.
    """

    repeatable = False

    def __init__(self, neighbors: Neighbors | None = None) -> None:
        # Per layer: (B, C, n, H, W) pieces, together at most as many frames as the layer looks back.
        self._cache: dict[nn.Module, list[Tensor]] = {}
        # Most bytes of the tensors of stages that take a few frames at a time; None for what keeps the device busy.
        self.tensor_bytes: int | None = None
        # Where the cache was loaded: the entry of the state for each of the model's layers.
        self._loaded: dict[nn.Module, str] = {}
        # Set last: attributes are deleted in order, and a workspace can only recycle memory that nothing refers to.
        super().__init__(neighbors)

    @property
    def cached_bytes(self) -> int:
        return sum(piece.nbytes for past in self._cache.values() for piece in past)

    def pad(
        self,
        layer: nn.Module,
        x: Tensor,
        padding: Padding,
        activation: Activation | None = None,
        *,
        split: bool = False,
    ) -> PaddedInput:
        if padding.before == 0:
            return super().pad(layer, x, padding, activation, split=split)
        past = self._cache.get(layer, [])
        margin = self.neighbors.margin(padding)
        if self._loaded and past:
            self._check_loaded(layer, x, padding, margin)
        zero_padding = padding.minus(margin)
        zero_padding = zero_padding._replace(before=padding.before - sum(piece.shape[2] for piece in past))
        if split and not any(margin):
            pieces = [*past, *self._split(x, padding.before, activation)]
            self._cache[layer] = _last_frames(pieces, padding.before)
            return PaddedInput(pieces, zero_padding)
        joined = self._joined(past[0] if past else None, x, margin, activation)
        self._update_cache(layer, joined, padding.before)
        return PaddedInput([joined], zero_padding)

    def _check_loaded(self, layer: nn.Module, x: Tensor, padding: Padding, margin: Padding) -> None:
        """Raise a UserError if a loaded cache is not what `pad` would have kept of earlier chunks like `x`."""
        past = self._cache[layer]
        frames = sum(piece.shape[2] for piece in past)
        size = (*x.shape[:2], x.shape[3] + margin.top + margin.bottom, x.shape[4] + margin.left + margin.right)
        alike = all((*piece.shape[:2], *piece.shape[3:]) == size for piece in past)
        # Autocast converts.
        alike = alike and all(needs_plain_ops() or piece.dtype == x.dtype for piece in past)
        if not alike or not 1 <= frames <= padding.before:
            found = ", ".join(f"{tuple(piece.shape)} of {piece.dtype}" for piece in past)
            raise UserError(
                f"The state's entry {self._loaded.get(layer)!r} is {found}, but it must be ({size[0]}, {size[1]}, 1 to"
                f" {padding.before}, {size[2]}, {size[3]}) of {x.dtype}; take the state as it was."
            )

    def _split(self, x: Tensor, count: int, activation: Activation | None) -> list[Tensor]:
        """Return `activation(x)` with each of its last `count` frames in its own memory, so that it can be cached."""
        frames = x.shape[2]
        first = max(0, frames - count)
        bounds = [0, *range(max(1, first), frames + 1)]
        pieces = []
        for start, stop in pairwise(bounds):
            part, persistent = x[:, :, start:stop], start >= first
            if activation is None and not persistent:
                pieces.append(part)
                continue
            piece = self.workspace.empty(part.shape, like=x, persistent=persistent)
            write(piece, part, activation)
            pieces.append(piece)
        return pieces

    def run_local(self, stages: Sequence[LocalStage], x: Tensor) -> Tensor:
        """Run the stages; those that keep the number of frames take a few frames at a time.

        Tensors at full resolution are large and need not exist for all frames at once.
        """
        for group in group_by_time(stages):
            frames = x.shape[2]
            count = frames if group[0].temporal or needs_plain_ops() else self._frames_at_once(group, x)
            if count >= frames:
                for stage in group:
                    x = stage.run(x, self)
                continue
            result = None
            for start in representative_passes(range(0, frames, count), x):
                part = x[:, :, start : start + count]
                for stage in group:
                    part = stage.run(part, self)
                if result is None:
                    result = self.workspace.empty((*part.shape[:2], frames, *part.shape[3:]), like=part)
                result[:, :, start : start + count] = part
                del part
            assert result is not None
            x = result
        return x

    def _frames_at_once(self, group: Sequence[LocalStage], x: Tensor) -> int:
        # All ranks must choose the same number, or they would wait for each other.
        elements = peak_channels(group) * self.neighbors.max_over_ranks(x[:, :1, :1].numel())
        most = target_bytes(device_of(x)) if self.tensor_bytes is None else self.tensor_bytes
        return max(1, int(most / (elements * x.dtype.itemsize)))

    def _update_cache(self, layer: nn.Module, x: Tensor, count: int) -> None:
        missing = max(0, count - x.shape[2])
        last = x[:, :, -count:]
        if needs_plain_ops():
            # A copy, because a view would keep the whole chunk alive.
            self._cache[layer] = [F.pad(last, (0, 0, 0, 0, missing, 0)).clone()]
            return
        cached = self._cache.get(layer, [])
        if len(cached) == 1 and cached[0].shape[2] == count:
            past = cached[0]
        else:
            batch, channels, _, height, width = x.shape
            past = self.workspace.empty_persistent((batch, channels, count, height, width), like=x)
            self._cache[layer] = [past]
        past[:, :, :missing].zero_()
        past[:, :, missing:] = last

    def advance(self) -> None:
        self.at_start = False

    def adopt(self, other: "CachedHalo") -> bool:
        """Overwrite the cache, at the same addresses, with that of another halo; return whether it has these sizes."""
        pairs = [(past, other._cache.get(layer, [])) for layer, past in self._cache.items()]
        alike = len(self._cache) == len(other._cache) and all(
            [(piece.shape, piece.dtype) for piece in past] == [(piece.shape, piece.dtype) for piece in theirs]
            for past, theirs in pairs
        )
        if alike:
            for past, theirs in pairs:
                for piece, source in zip(past, theirs, strict=True):
                    piece.copy_(source)
            self.at_start = other.at_start
        return alike

    def state_dict(self, model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
        """Return copies of the cache between two chunks, contiguous (B, C, n, H, W).

        Args:
            model: Gives the names of its layers.
            prefix: Prepended to each name.
        """
        names = {layer: name for name, layer in model.named_modules()}
        return {
            prefix + names[layer]: torch.cat(past, dim=2).clone(memory_format=torch.contiguous_format)
            for layer, past in self._cache.items()
        }

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Fill the cache with copies of another halo's, taken from the same model after its first chunk or later.

        Args:
            model: The model whose layers will ask.
            state: The result of `state_dict`; entries without the prefix are ignored.
            prefix: Comes before each name.

        Raises:
            UserError: The model has no such layer, or an entry is no cache. `pad` checks that it is that of its layer.
        """
        layers = dict(model.named_modules())
        for name, past in state.items():
            if not name.startswith(prefix):
                continue
            layer = layers.get(name.removeprefix(prefix))
            if layer is None:
                raise UserError(f"The state has an entry {name!r}, but this model has no such layer.")
            if past.ndim != 5 or past.numel() == 0:
                raise UserError(f"The state's entry {name!r} is {tuple(past.shape)}; take the state as it was.")
            cached = self.workspace.empty_persistent(tuple(past.shape), like=past)
            cached.copy_(past)
            self._cache[layer] = [cached]
        # Without the model: a halo that waits for another stream must not keep it alive.
        self._loaded = {layer: f"{prefix}{name}" for name, layer in layers.items() if layer is not model}
        self.at_start = False


def target_bytes(device: torch.device) -> int:
    """Return the size of a tensor that keeps a device busy; on a CPU, a smaller one would not stay in the cache."""
    return 2**29 if device.type == "cuda" else 2**25


def _last_frames(pieces: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the last `count` frames of consecutive pieces, or all there are."""
    last: list[Tensor] = []
    for piece in reversed(pieces):
        missing = count - sum(other.shape[2] for other in last)
        if missing > 0:
            last.insert(0, piece[:, :, -missing:])
    return last
