"""One clip passing through the network chunk by chunk, in memory that does not grow with its length.

A stream belongs to its caller. The model keeps nothing of it, so any number of streams can share one model.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.errors import UserError
from wan_vae.model.halo import Halo, StreamHalo
from wan_vae.model.neighbors import Neighbors
from wan_vae.ops.recorded_pass import RecordedPass
from wan_vae.ops.recording import recorded

Pass = Callable[[Tensor, Halo], Tensor]

# After the clip's first frame one pass remembers some things for the first time, and the next one uses them.
_RUNS_BEFORE_RECORDING = 2


class Pace(NamedTuple):
    """How a clip goes through the network.

    Attributes:
        group: How many frames go together after the first: a multiple of the temporal compression when encoding, any
            number of latents when decoding.
        is_light: Whether a pass gives a GPU so little to do that it waits for the next launch.
    """

    group: int
    is_light: bool = False


class Stream:
    """Feeds what is pushed to it to `network` in passes of the first frame alone, then of several frames.

    Args:
        network: What a pass computes, from (B, C, n, H, W) and the halo of this stream.
        pace: Chosen by the first chunk.
        unit: The smallest number of frames that can follow the first.
        becomes: How many frames of the result come from a unit.
        neighbors: What lies around the pixels of the clip; default nothing.
    """

    def __init__(
        self,
        network: Pass,
        *,
        pace: Callable[[Tensor], Pace],
        unit: int,
        becomes: int,
        neighbors: Neighbors | None = None,
    ) -> None:
        self._network = network
        self._choose_pace = pace
        self._pace = Pace(unit)
        self._recorded: RecordedPass | None = None
        self._ran: Counter[int] = Counter()
        self._unit = unit
        self._becomes = becomes
        self._halo = StreamHalo(neighbors)
        self._waiting: list[Tensor] = []
        self._passed = 0
        self._rest: tuple[int, ...] | None = None

    def push(self, x: Tensor) -> Tensor | None:
        """Take the clip's next (B, C, n, H, W), any n, and return what can be computed by now, if anything.

        Raises:
            UserError: B, C, H or W is not that of the chunks before.
        """
        rest = (*x.shape[:2], *x.shape[3:])
        if self._rest is not None and rest != self._rest:
            raise UserError(f"A chunk is {tuple(x.shape)}, which in more than time differs from the chunks before it.")
        self._rest = rest
        if x.shape[2] > 0:
            if self._passed == 0 and not self._waiting:
                self._pace = self._choose_pace(x)
            self._waiting.append(x)
        due, done, result = self._due(), 0, None
        while (count := self._next_pass()) > 0:
            part = self._run(self._take(count))
            self._halo.advance()
            self._passed += count
            if result is None:
                # All of it at once: parts that are joined in the end take twice the memory.
                result = part if part.shape[2] == due else part.new_empty(*part.shape[:2], due, *part.shape[3:])
            if result is not part:
                result[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        return result

    def flush(self) -> None:
        """End the clip.

        Raises:
            UserError: Nothing was pushed, or frames are left over that do not make up a latent.
        """
        left = sum(chunk.shape[2] for chunk in self._waiting)
        total = self._passed + left
        if total == 0:
            raise UserError("The stream ended without a single frame; push at least one.")
        if left > 0:
            raise UserError(
                f"The stream ended after {total} frames; {total - left} or {total - left + self._unit} would fit."
            )

    def _run(self, x: Tensor) -> Tensor:
        if self._recorded is not None and self._recorded.serves(x):
            return self._recorded(x)
        if self._recorded is None and self._pace.is_light and x.is_cuda and not recorded() and not self._halo.at_start:
            if self._ran[x.shape[2]] == _RUNS_BEFORE_RECORDING:
                self._recorded = RecordedPass(lambda chunk: self._network(chunk, self._halo), x)
                return self._recorded(x)
            self._ran[x.shape[2]] += 1
        return self._network(x, self._halo)

    def _due(self) -> int:
        waiting = sum(chunk.shape[2] for chunk in self._waiting)
        first = 1 if self._halo.at_start and waiting > 0 else 0
        return first + (waiting - first) // self._unit * self._becomes

    def _next_pass(self) -> int:
        waiting = sum(chunk.shape[2] for chunk in self._waiting)
        if self._halo.at_start:
            return min(waiting, 1)
        return min(waiting // self._unit * self._unit, self._pace.group)

    def _take(self, count: int) -> Tensor:
        joined = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting, dim=2)
        self._waiting = [joined[:, :, count:]] if joined.shape[2] > count else []
        return joined[:, :, :count]
