"""Streams as objects: a clip that is pushed as it comes, through a model that any number of streams share.

One clip passing through the network chunk by chunk, in memory that does not grow with its length.

A stream belongs to its caller. The model keeps nothing of it, so any number of streams can share one model.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.chunk_size import ChunkSize
from wan_vae.inference.stream_state import Direction, checked_state, identified_state
from wan_vae.inference.tiling import TiledHalo, Tiling, tiling_of
from wan_vae.model.halo import CachedHalo, Halo, Neighbors
from wan_vae.ops.cuda_graph import CudaGraph
from wan_vae.ops.dispatch import needs_plain_ops
from wan_vae.validation import check_latents, check_video

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

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
        pace: Callable[[Tensor], ChunkSize],
        unit: int,
        becomes: int,
        neighbors: Neighbors | None = None,
    ) -> None:
        self._network = network
        self._choose_pace = pace
        self._pace: ChunkSize | None = None
        self._recorded: CudaGraph | None = None
        self._ran: Counter[int] = Counter()
        self._unit = unit
        self._becomes = becomes
        self._halo = CachedHalo(neighbors)
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
                self._halo = TiledHalo(self._pace.tiling, self._halo.neighbors, streaming=True)
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
        self._halo.workspace.trim()
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
                self._halo = TiledHalo(tiling, self._halo.neighbors, streaming=True)
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
        if self._recorded is not None and self._recorded.supports(x):
            return self._recorded(x)
        assert self._pace is not None
        if (
            self._recorded is None
            and self._pace.launch_bound
            and x.is_cuda
            and not needs_plain_ops()
            and not self._halo.at_start
        ):
            if self._ran[x.shape[2]] == _RUNS_BEFORE_RECORDING:
                network, halo = self._network, self._halo  # not this stream, which would then not end by itself
                self._recorded = CudaGraph(lambda chunk: network(chunk, halo), x)
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


Self = TypeVar("Self", bound="ClipStream")


class ClipStream:
    """What both directions share.

    `push` returns all that can be computed by then, so that nothing is ever held back: `flush` ends the clip and has
    nothing left to return. A stream takes any number of frames at a time, none included, keeps a copy of those that
    wait, and records no gradients, in whatever mode of PyTorch it is called.

    As a context manager, a stream is flushed when its block ends, and only closed, its clip left as it is, when an
    exception ends it. Either way its memory goes back.

    A stream can move to another process: `state_dict` returns all that is to come depends on, as tensors by name, such
    as `safetensors.torch.save_file` writes. Loaded into a new stream of the same model, it goes on with the same bytes,
    on the same kind of machine.
    """

    def __init__(
        self,
        vae: "WanVAE",
        stream: Stream,
        check: Callable[[Tensor], None],
        direction: Direction,
        half: tuple[nn.Module, ...],
    ) -> None:
        self._vae = vae
        self._stream: Stream | None = stream
        self._check = check
        self._direction = direction
        self._half = half

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Tensor | None:
        """Take what comes next of the clip, and return what can be computed by now, or None if that is nothing.

        Raises:
            UserError: The chunk is not what this model takes, or differs from those before in more than time, or the
                stream has ended. Nothing was taken then.
        """
        stream = self._running()
        self._check(chunk)
        if chunk.device != self._vae.device:
            raise UserError(
                f"A chunk is on {chunk.device}, but the model on {self._vae.device}; move it there: `.to(vae.device)`."
            )
        return stream.push(chunk)

    def flush(self) -> None:
        """End the clip. All of it was returned by `push`; only a new stream takes more.

        Raises:
            UserError: Nothing was pushed, or frames are left over that do not make up a latent: push `missing` more, or
                `close`. Or the stream has ended before.
        """
        self._running().flush()
        self.close()

    def close(self) -> None:
        """Give the stream's memory back, whatever is left over. Closing twice does no harm."""
        self._stream = None

    @property
    def position(self) -> int:
        """How many frames, or latents when decoding, were pushed so far: the index of the next."""
        return self._running().taken

    @property
    def missing(self) -> int:
        """How many frames more make up a whole latent; 0 where the clip may end."""
        return self._running().missing

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of all that the rest of the clip depends on but for the weights, on the model's device.

        Its entries are what the layers remember ("halo." and the layer's name), the frames that wait, how many were
        pushed, and by what model and weights.

        Raises:
            UserError: The stream has ended.
        """
        return identified_state(self._running().state_dict(self._vae), self._direction, self._vae.config, self._half)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another stream was when `state_dict` was called; this one must be new.

        For the same bytes from there on, push the same chunks, with the same `latents_per_pass`.

        Raises:
            UserError: This stream has begun or ended; or the state is of the other direction, of another model, other
                weights or another dtype, or entries are missing, misshapen or in excess.
        """
        stream = self._running()
        content = checked_state(state, self._direction, self._vae.config, self._half)
        if "waiting" in content:
            self._check(content["waiting"])
        stream.load_state_dict(self._vae, content)

    def __enter__(self: Self) -> Self:
        self._running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                self.flush()
        finally:
            self.close()

    def _running(self) -> Stream:
        if self._stream is None:
            raise UserError("This stream has ended; make a new one for another clip.")
        return self._stream


class EncodeStream(ClipStream):
    """Encodes a clip while it comes: frames (B, 3, n, H, W) in [-1, 1], any n, to final latents (B, z, m, h, w).

    The clip's first frame gives its latent at once, and each four frames more (`config.temporal_compression`) the next.
    All latents together are those of `vae.encode`, and memory does not grow with the clip's length:

        with EncodeStream(vae) as stream:
            for frame in camera:  # (1, 3, 1, H, W)
                latents = stream.push(frame)
                if latents is not None:
                    send(latents)
            if stream.missing > 0:  # a camera stops at any frame: its last one, repeated, makes the latent whole
                send(stream.push(frame.expand(-1, -1, stream.missing, -1, -1)))

    Args:
        vae: The model, in eval mode. It keeps nothing of the stream, and its weights must stay as they are meanwhile.
        latents_per_pass: How many latents go through the network together at most; default one, and on a GPU as many as
            keep it busy. Latents are never held back until there are as many.
        neighbors: Who holds what lies around the clip, if it is a part of a larger picture; see `WanVAE.shard`.
        memory: A budget for what a push of as many latents takes; see `WanVAE.encode`. By it and the size of the first
            chunk the stream decides whether to go tile by tile.
        tiling: How to go tile by tile, where that is decided: `Plan.tiling`.

    Raises:
        UserError: `latents_per_pass` is less than 1.
    """

    def __init__(
        self,
        vae: "WanVAE",
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__(
            vae,
            vae._encoding(latents_per_pass, final=True, neighbors=neighbors, memory=memory, tiling=tiling),
            partial(check_video, config=vae.config, whole=False),
            "encode",
            (vae.encoder, vae.quant_conv),
        )


class DecodeStream(ClipStream):
    """Decodes a clip while its latents come: final ones (B, z, n, h, w), any n, to frames (B, 3, m, H, W) in [-1, 1].

    The first latent gives the first frame, and each one more gives four (`config.temporal_compression`), at once. All
    frames together are those of `vae.decode`, and memory does not grow with the clip's length:

        with DecodeStream(vae) as stream:
            for latents in received:
                frames = stream.push(latents)
                if frames is not None:
                    show(frames)

    Args:
        vae: The model, in eval mode. It keeps nothing of the stream, and its weights must stay as they are meanwhile.
        latents_per_pass: How many latents go through the network together at most; default one, and on a GPU as many as
            keep it busy. Frames are never held back until there are as many.
        neighbors: Who holds what lies around the clip, if it is a part of a larger picture; see `WanVAE.shard`.
        memory: A budget for what a push of as many latents takes; see `WanVAE.encode`. By it and the size of the first
            chunk the stream decides whether to go tile by tile.
        tiling: How to go tile by tile, where that is decided: `Plan.tiling`.

    Raises:
        UserError: `latents_per_pass` is less than 1.
    """

    def __init__(
        self,
        vae: "WanVAE",
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__(
            vae,
            vae._decoding(latents_per_pass, neighbors=neighbors, memory=memory, tiling=tiling),
            partial(check_latents, config=vae.config, whole=False),
            "decode",
            (vae.post_quant_conv, vae.decoder),
        )
