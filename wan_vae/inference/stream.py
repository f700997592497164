"""Streams as objects: a clip that is pushed as it arrives, through a model that any number of streams share."""

from collections.abc import Mapping
from types import NoneType, TracebackType
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from wan_vae.arguments import check_flag, check_type
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.chunk_size import check_latents_per_pass
from wan_vae.inference.dry_run import make_plan
from wan_vae.inference.passes import Direction, Stream, open_stream
from wan_vae.inference.stream_state import checked_state, identified_state
from wan_vae.inference.tiling import Tiling
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.halo import Neighbors
from wan_vae.validation import check_device, check_latents, check_video

Self = TypeVar("Self", bound="ClipStream")


class ClipStream:
    """A clip on its way through a model, in chunks of any size.

    `push` returns everything that can be computed so far; `flush` ends the clip and returns
    nothing, because `push` has already returned every result. A
    stream keeps a copy of frames that wait for a whole latent, and records no gradients, in any mode of PyTorch.

    As a context manager, a stream is flushed when its block ends, and only closed when an exception ends the block.
    Both free its memory.

    A stream can move to another process: `state_dict` returns its state as tensors by name, which
    `safetensors.torch.save_file` can write. A new stream of the same model that loads it continues with the same bytes,
    on the same kind of machine.

    Args:
        vae: The model, in eval mode. It keeps nothing of the stream; its weights must not change during the stream.
        latents_per_pass: Latents per pass at most; default as many as keep the device busy. No result waits
            until there are as many.
        neighbors: The holders of the pixels around the clip, where it is a part of a larger picture (`WanVAE.shard`).
        memory: A budget for a push of that many latents, as for `WanVAE.encode`. With it, the first chunk decides how
            pictures are tiled.
        tiling: How pictures are tiled, where that is decided already: `Plan.tiling`.
        moments: Whether encoding returns mean and log-variance of the raw latents, (B, 2z, m, h, w), instead of
            normalized latents: `Posterior.from_moments` takes them.

    Raises:
        UserError: `latents_per_pass` is no whole number above 0, `memory` is given together with `neighbors` or
            `tiling`, or `moments` of a stream that decodes.
    """

    _direction: ClassVar[Direction]

    def __init__(
        self,
        vae: Autoencoder,
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
        tiling: Tiling | None = None,
        moments: bool = False,
    ) -> None:
        check_type("vae", vae, Autoencoder, "a model, such as WanVAE.from_pretrained(...)")
        check_type("neighbors", neighbors, (NoneType, Neighbors), "None or what holds the pixels around the clip")
        check_type("tiling", tiling, (NoneType, Tiling), "None or a Tiling")
        check_flag("moments", moments)
        latents = check_latents_per_pass(latents_per_pass)
        if moments and self._direction == "decode":
            raise UserError("Decoding gives frames, not moments; only an EncodeStream has them.")
        if tiling is not None:
            stages = len((vae.encoder if self._direction == "encode" else vae.decoder).local_stages())
            if tiling.last > stages:
                raise UserError(
                    f"The tiling's last is {tiling.last}, and this network has {stages} stages; take that of a plan."
                )
        if tiling is not None and memory is not None:
            raise UserError("A budget decides the tiling itself; pass either memory or tiling.")
        if neighbors is not None and memory is not None:
            raise UserError(
                "A part of a picture has no budget of its own, because all parts take the same passes; the streams of"
                " `vae.shard()` take one."
            )

        direction = self._direction  # without a reference to this object, which would keep itself alive

        def plan(chunk: Tensor) -> tuple[int | None, Tiling | None]:
            if memory is None:
                return latents, tiling
            chosen = make_plan(vae, direction, chunk, latents, memory, streaming=True)
            return chosen.latents_per_pass, chosen.tiling

        encodes = direction == "encode"
        self._vae = vae
        self._half = (vae.encoder, vae.quant_conv) if encodes else (vae.post_quant_conv, vae.decoder)
        self._stream: Stream | None = open_stream(vae, direction, neighbors=neighbors, plan=plan, moments=moments)

    @torch.no_grad()
    def push(self, chunk: Tensor) -> Tensor | None:
        """Take the clip's next frames or latents, and return what can be computed by now, or None if that is nothing.

        Raises:
            UserError: The chunk is not what this model takes, or differs from earlier ones in more than time, or the
                stream has ended, or the budget is too small. Nothing was taken then.
        """
        stream = self._running()
        self._check(chunk)
        if self._vae.config.images_only and stream.position + chunk.shape[2] > 1:
            raise UserError("This model takes single pictures, and this stream has had its one; make a new stream.")
        check_device(chunk, self._vae.device)
        return stream.push(chunk)

    def flush(self) -> None:
        """End the clip. All of it was returned by `push`; only a new stream takes more.

        Raises:
            UserError: Nothing was pushed, or frames are left over that do not make up a latent (push `missing` more, or
                `close`), or the stream has ended before.
        """
        self._running().flush()
        self.close()

    def close(self) -> None:
        """Free the stream's memory, whatever is left over. Closing twice does no harm."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    @property
    def position(self) -> int:
        """Frames, or latents when decoding, pushed so far: the index of the next one."""
        return self._running().position

    @property
    def missing(self) -> int:
        """Frames missing from the last latent; 0 where the clip may end."""
        return self._running().frames_needed

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of everything that the rest of the clip depends on, on the model's device, without the weights.

        The entries are the caches ("halo." and the layer's name), the waiting frames, the position, and what identifies
        the model and its weights.

        Raises:
            UserError: The stream has ended.
        """
        return identified_state(self._running().state_dict(), self._direction, self._vae.config, self._half)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where another stream was when `state_dict` was called; this one must be new.

        For the same bytes from there on, push the same chunks, with the same `latents_per_pass`.

        Raises:
            UserError: This stream has begun or ended; or the state is of the other direction, another model, other
                weights or another dtype, or entries are missing, misshapen or in excess.
        """
        stream = self._running()
        content = checked_state(state, self._direction, self._vae.config, self._half)
        if "waiting" in content:
            self._check(content["waiting"])
        stream.load_state_dict(content)

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

    def _check(self, chunk: Tensor) -> None:
        if self._direction == "encode":
            check_video(chunk, self._vae.config, whole=False)
        else:
            check_latents(chunk, self._vae.config, whole=False)

    def _running(self) -> Stream:
        if self._stream is None:
            raise UserError("This stream has ended; make a new one for another clip.")
        return self._stream


class EncodeStream(ClipStream):
    """Encodes a clip as it arrives: frames (B, 3, n, H, W) in [-1, 1], any n -> normalized latents (B, z, m, h, w).

    The first frame gives its latent at once, and each four more (`config.temporal_compression`) the next one. The
    concatenated latents are those of `vae.encode`, and memory does not grow with the clip's length:

        with EncodeStream(vae) as stream:
            for frame in camera:  # (1, 3, 1, H, W)
                latents = stream.push(frame)
                if latents is not None:
                    send(latents)
            if stream.missing > 0:  # a camera stops at any frame: repeat its last one to complete the latent
                send(stream.push(frame.expand(-1, -1, stream.missing, -1, -1)))
    """

    _direction: ClassVar[Direction] = "encode"


class DecodeStream(ClipStream):
    """Decodes a clip as its latents arrive: normalized (B, z, n, h, w), any n -> frames (B, 3, m, H, W) in [-1, 1].

    The first latent gives the first frame, and each one more gives four (`config.temporal_compression`), at once. The
    concatenated frames are those of `vae.decode`, and memory does not grow with the clip's length:

        with DecodeStream(vae) as stream:
            for latents in received:
                frames = stream.push(latents)
                if frames is not None:
                    show(frames)
    """

    _direction: ClassVar[Direction] = "decode"
