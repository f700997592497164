"""What lies beyond the edges of the tensor a layer was given.

Every layer of the network is local, the attention in the middle aside. Whether a clip is processed whole or as a stream
(and, with the same questions, in tiles or on several devices) therefore comes down to one thing: what a layer finds
when it looks past the edge of its input. A halo answers that, is handed down the forward pass, and is the only object
that knows; layers and models have no modes and keep no state.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.model.steps import Run, Step, runs_of_frames, values_of
from wan_vae.ops.recording import recorded
from wan_vae.ops.rehearsal import device_of
from wan_vae.ops.workspace import Workspace


def bytes_at_once(device: torch.device) -> int:
    """Return the size of a tensor that keeps the device busy. On a CPU, less still would not stay in the cache."""
    return 2**29 if device.type == "cuda" else 2**25


class Reach(NamedTuple):
    """How far a layer looks beyond its input: frames before it, pixels around it."""

    before: int = 0
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


class Activation(Protocol):
    """What is done to a layer's input before anything else: a function of each pixel alone."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def into(self, out: Tensor, x: Tensor) -> None:
        """Write the result to `out`, without gradients."""


class Halo:
    """The halo of a whole clip: nothing lies beyond any edge. A pass with it is a pure function."""

    def __init__(self) -> None:
        self.workspace = Workspace()

    @property
    def at_start(self) -> bool:
        """Whether the first frame of the tensors of this pass is the clip's first frame."""
        return True

    @property
    def repeatable(self) -> bool:
        """Whether asking twice gives the same answer, as recomputing activations in the backward pass needs."""
        return True

    def surround(
        self, layer: nn.Module, x: Tensor, reach: Reach, activation: Activation | None = None
    ) -> tuple[Tensor, Reach]:
        """Put around `x` (B, C, T, H, W) what is known to lie within `reach` of it.

        Args:
            layer: Who asks. What a halo remembers is kept by layer.
            x: The layer's input.
            reach: How far the layer looks.
            activation: What `x` has to pass through first.

        Returns:
            The extended tensor, and the part of `reach` where the clip ends and nothing lies.
        """
        if activation is None:
            return x, reach
        if recorded():
            return activation(x), reach
        out = self.workspace.empty(x.shape, like=x)
        activation.into(out, x)
        return out, reach

    def whole(self, stage: Run, x: Tensor) -> Tensor:
        """Run a stage of the network that looks at whole frames."""
        return stage(x, self)

    def local(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        """Run steps of the network one after the other that look only so far around each pixel."""
        for step in steps:
            x = step.run(x, self)
        return x


class StreamHalo(Halo):
    """The halo of one clip that arrives in chunks: before a chunk lie the last frames of the one before.

    One object serves one clip in one direction. Call `advance` after each chunk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._started = False
        self._remembered: dict[nn.Module, Tensor] = {}

    @property
    def at_start(self) -> bool:
        return not self._started

    @property
    def repeatable(self) -> bool:
        return False

    def surround(
        self, layer: nn.Module, x: Tensor, reach: Reach, activation: Activation | None = None
    ) -> tuple[Tensor, Reach]:
        if reach.before == 0:
            return super().surround(layer, x, reach, activation)
        past = self._remembered.get(layer)
        x = self._behind(past, x, activation)
        self._remember(layer, x, reach.before)
        return x, reach if past is None else reach._replace(before=0)

    def local(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        for run in runs_of_frames(steps):
            x = self._in_portions(run, x)
        return x

    def _in_portions(self, run: Sequence[Step], x: Tensor) -> Tensor:
        # Where every frame stays one, they need not all be held at once, and tensors may be large.
        frame = values_of(run) * x[:, :1, :1].numel() * x.dtype.itemsize
        count = x.shape[2] if run[0].temporal else max(1, int(bytes_at_once(device_of(x)) / frame))
        if count >= x.shape[2] or recorded():
            return super().local(run, x)
        result = None
        for start in range(0, x.shape[2], count):
            part = super().local(run, x[:, :, start : start + count])
            if result is None:
                result = self.workspace.empty((*part.shape[:2], x.shape[2], *part.shape[3:]), like=part)
            result[:, :, start : start + count] = part
            del part
        assert result is not None
        return result

    def _behind(self, past: Tensor | None, x: Tensor, activation: Activation | None) -> Tensor:
        if recorded():
            x = x if activation is None else activation(x)
            return x if past is None else torch.cat([past, x], dim=2)
        if past is None and activation is None:
            return x
        known = 0 if past is None else past.shape[2]
        batch, channels, frames, height, width = x.shape
        joined = self.workspace.empty((batch, channels, known + frames, height, width), like=x)
        if past is not None:
            joined[:, :, :known] = past
        if activation is None:
            joined[:, :, known:] = x
        else:
            activation.into(joined[:, :, known:], x)
        return joined

    def _remember(self, layer: nn.Module, x: Tensor, count: int) -> None:
        missing = max(0, count - x.shape[2])
        last = x[:, :, -count:]
        if recorded():
            # A copy, because a view would keep the whole chunk alive.
            self._remembered[layer] = F.pad(last, (0, 0, 0, 0, missing, 0)).clone()
            return
        past = self._remembered.get(layer)
        if past is None:
            batch, channels, _, height, width = x.shape
            past = self.workspace.lasting((batch, channels, count, height, width), like=x)
            self._remembered[layer] = past
        past[:, :, :missing].zero_()
        past[:, :, missing:] = last

    def advance(self) -> None:
        """Mark the end of a chunk: what comes next is not the clip's start."""
        self._started = True
