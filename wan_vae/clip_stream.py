"""Streams as objects: a clip that is pushed as it comes, through a model that any number of streams share."""

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from wan_vae.checks import check_latents, check_video
from wan_vae.errors import UserError
from wan_vae.memory import Budget
from wan_vae.model.neighbors import Neighbors
from wan_vae.model.tiling import Tiling
from wan_vae.stream import Stream
from wan_vae.stream_state import Direction, checked_state, identified_state

if TYPE_CHECKING:
    from wan_vae.vae import WanVAE

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
