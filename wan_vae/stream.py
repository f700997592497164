"""One clip passing through the network chunk by chunk, in memory that does not grow with its length.

A stream belongs to its caller. The model keeps nothing of it, so any number of streams can share one model.
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from wan_vae.errors import UserError
from wan_vae.model.halo import Halo, StreamHalo
from wan_vae.model.neighbors import Neighbors
from wan_vae.model.tiled_halo import TiledHalo, tiling_of
from wan_vae.ops.recorded_pass import RecordedPass
from wan_vae.ops.recording import recorded
from wan_vae.pace import Pace

Pass = Callable[[Tensor, Halo], Tensor]

# After the clip's first frame one pass remembers some things for the first time, and the next one uses them.
_RUNS_BEFORE_RECORDING = 2


class Stream:
    """Feeds what is pushed to it to `network` in passes of the first frame alone, then of several frames.

    Args:
        network: What a pass computes, from (B, C, n, H, W) and the halo of this stream.
        pace: Chosen by the size of the first chunk's frames.
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
        self._pace: Pace | None = None
        self._recorded: RecordedPass | None = None
        self._ran: Counter[int] = Counter()
        self._unit = unit
        self._becomes = becomes
        self._halo = StreamHalo(neighbors)
        # (B, C, n, H, W): what does not make up a unit yet. None before the first chunk.
        self._waiting: Tensor | None = None
        self._passed = 0
        self._interrupted = False

    @property
    def taken(self) -> int:
        """How many frames were pushed so far."""
        return self._passed + self._left

    @property
    def missing(self) -> int:
        """How many frames more would make up the last unit; a clip has at least one frame."""
        if self.taken == 0:
            return 1
        return -self._left % self._unit

    def push(self, x: Tensor) -> Tensor | None:
        """Take the clip's next (B, C, n, H, W), any n, and return what can be computed by now, if anything.

        Raises:
            UserError: B, C, H, W, the dtype or the device is not that of the chunks before, or a pass before this one
                did not come to its end.
        """
        self._check_whole()
        if self._waiting is None:
            self._waiting = x[:, :, :0]
        self._check_like_before(x, self._waiting)
        if self._left > 0:
            x = torch.cat([self._waiting, x], dim=2)
        if self._pace is None and x.shape[2] > 0:
            self._pace = self._choose_pace(x)
            if self._pace.tiling is not None and self._passed == 0:  # what goes on stays cut as it was
                self._halo = TiledHalo(self._pace.tiling, self._halo.neighbors, goes_on=True)
        self._interrupted = True
        due, done, start, result = self._due(x.shape[2]), 0, 0, None
        while (count := self._next_pass(x.shape[2] - start)) > 0:
            part = self._run(x[:, :, start : start + count])
            self._halo.advance()
            start += count
            if result is None:
                # All of it at once: parts that are joined in the end take twice the memory.
                result = part if part.shape[2] == due else part.new_empty(*part.shape[:2], due, *part.shape[3:])
            if result is not part:
                result[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        # A copy, because the caller may fill the same memory with the next frame.
        self._waiting = x[:, :, start:].clone()
        self._passed += start
        self._interrupted = False
        self._halo.workspace.rest()
        return result

    def flush(self) -> None:
        """End the clip.

        Raises:
            UserError: Nothing was pushed, frames are left over that do not make up a latent, or a pass did not come to
                its end.
        """
        self._check_whole()
        total, left = self.taken, self._left
        if total == 0:
            raise UserError("The stream ended without a single frame; push at least one.")
        if left > 0:
            raise UserError(
                f"The stream ended after {total} frames; {total - left} or {total - left + self._unit} would fit."
            )

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return copies of all that the next pass depends on; nothing before the first chunk.

        Args:
            model: By whose names of its layers to call what the halo remembers.
        """
        self._check_whole()
        if self._waiting is None:
            return {}
        return {
            "position": torch.tensor(self.taken, device="cpu"),
            "waiting": self._waiting.clone(memory_format=torch.contiguous_format),
            **self._halo.state_dict(model, "halo."),
        }

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, whose tensors are copied to the device of the model.

        Raises:
            UserError: The stream has begun, or the state makes no sense.
        """
        if self._waiting is not None:
            raise UserError("A stream that has begun takes no state; load it into a new one.")
        if not state:
            return
        position, waiting = int(state["position"]), state["waiting"]
        # The first frame passes at once, and then every whole unit.
        if waiting.shape[2] != (max(0, position - 1) % self._unit) or position < 0:
            raise UserError(f"The state is damaged: of {position} frames, {waiting.shape[2]} wait.")
        self._passed = position - waiting.shape[2]
        waiting = waiting.to(next(model.parameters()).device, copy=True)
        if self._passed > 0:
            batch, channels, _, height, width = waiting.shape
            self._pace = self._choose_pace(waiting.new_empty(1).expand(batch, channels, 1, height, width))
            # How pictures are cut comes with the state, for what tiles remember fits no others.
            tiling = tiling_of(state, "halo.")
            if tiling is not None:
                self._halo = TiledHalo(tiling, self._halo.neighbors, goes_on=True)
            self._halo.load_state_dict(model, state, "halo.")
        self._waiting = waiting

    @property
    def _left(self) -> int:
        return 0 if self._waiting is None else self._waiting.shape[2]

    def _check_whole(self) -> None:
        if self._interrupted:
            raise UserError(
                "A pass of this stream was interrupted, and what it remembers is not whole; make a new stream, or load"
                " a saved state into it."
            )

    @staticmethod
    def _check_like_before(x: Tensor, before: Tensor) -> None:
        if (*x.shape[:2], *x.shape[3:]) != (*before.shape[:2], *before.shape[3:]):
            raise UserError(
                f"A chunk is {tuple(x.shape)}, which in more than time differs from the chunks before it:"
                f" ({before.shape[0]}, {before.shape[1]}, n, {before.shape[3]}, {before.shape[4]})."
            )
        for kind, now, then in (("dtype", x.dtype, before.dtype), ("device", x.device, before.device)):
            if now != then:
                raise UserError(f"A chunk's {kind} is {now}, but that of the chunks before it is {then}; convert it.")

    def _run(self, x: Tensor) -> Tensor:
        if self._recorded is not None and self._recorded.serves(x):
            return self._recorded(x)
        assert self._pace is not None
        if self._recorded is None and self._pace.is_light and x.is_cuda and not recorded() and not self._halo.at_start:
            if self._ran[x.shape[2]] == _RUNS_BEFORE_RECORDING:
                network, halo = self._network, self._halo  # not this stream, which would then not end by itself
                self._recorded = RecordedPass(lambda chunk: network(chunk, halo), x)
                return self._recorded(x)
            self._ran[x.shape[2]] += 1
        return self._network(x, self._halo)

    def _due(self, waiting: int) -> int:
        first = 1 if self._halo.at_start and waiting > 0 else 0
        return first + (waiting - first) // self._unit * self._becomes

    def _next_pass(self, waiting: int) -> int:
        if self._halo.at_start:
            return min(waiting, 1)
        if self._pace is None:  # nothing came yet
            return 0
        return min(waiting // self._unit * self._unit, self._pace.group)
