"""Passes of a clip through the network, in memory that does not grow with the clip's length.

All functions take an `Autoencoder`, which keeps nothing of a clip, so that any number of clips can share one model.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wan_vae.errors import UserError
from wan_vae.inference.chunk_size import ChunkSize, choose_chunk_size
from wan_vae.inference.input_history import InputHistory
from wan_vae.inference.pass_runner import Network, PassRunner
from wan_vae.inference.tiling import TiledHalo, Tiling, tiling_of
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.halo import Halo, Neighbors
from wan_vae.ops import needs_plain_ops
from wan_vae.ops.conv3d import check_convolutions, lay_out_weights
from wan_vae.ops.cpu.build import ensure_kernels
from wan_vae.ops.memory_estimator import device_of
from wan_vae.ops.precision import tf32
from wan_vae.posterior import LatentStatistics

Direction = Literal["encode", "decode"]

_MOST_FRAMES = 2**48  # of a stream, far from what its state cannot hold


def encode_moments(
    model: Autoencoder,
    video: Tensor,
    latents_per_pass: int | None = None,
    tiling: Tiling | None = None,
    neighbors: Neighbors | None = None,
) -> Tensor:
    """Encode a whole clip (B, 3, T, H, W) in [-1, 1] to mean and log-variance of its raw latents, (B, 2z, t, h, w)."""
    if tiling is not None or video.shape[2] == 1:
        _prepare(model)
        return _moments_pass(model, video, Halo(neighbors) if tiling is None else TiledHalo(tiling, neighbors))
    stream = open_stream(
        model, "encode", moments=True, latents_per_pass=latents_per_pass, neighbors=neighbors, one_push=True
    )
    moments = stream.push(video)
    stream.flush()
    assert moments is not None
    return moments


def decode_video(
    model: Autoencoder,
    latents: Tensor,
    latents_per_pass: int | None = None,
    tiling: Tiling | None = None,
    neighbors: Neighbors | None = None,
    *,
    raw: bool = False,
) -> Tensor:
    """Decode a whole clip of normalized, or raw, latents (B, z, t, h, w) to (B, 3, T, H, W), clamped to [-1, 1]."""
    if tiling is not None or latents.shape[2] == 1:
        _prepare(model)
        halo = Halo(neighbors) if tiling is None else TiledHalo(tiling, neighbors)
        return decode_pass(model, latents, halo, LatentStatistics.none(latents.device) if raw else None)
    stream = open_stream(
        model, "decode", raw=raw, latents_per_pass=latents_per_pass, neighbors=neighbors, one_push=True
    )
    video = stream.push(latents)
    stream.flush()
    assert video is not None
    return video


def decode_pass(model: Autoencoder, latents: Tensor, halo: Halo, statistics: LatentStatistics | None = None) -> Tensor:
    """Decode normalized latents (B, z, t, h, w) in one pass: (B, 3, T, H, W), clamped to [-1, 1]."""
    if statistics is None:
        statistics = LatentStatistics.of(model.config, model.decoder_dtype, latents.device)
    with tf32(model.decoder_tf32):
        video = model.pixels(statistics.denormalized(latents.to(model.decoder_dtype)), halo)
    # Only tiles are certain to have been put together in memory that nothing else refers to.
    return video.clamp_(-1.0, 1.0) if isinstance(halo, TiledHalo) else video.clamp(-1.0, 1.0)


def _moments_pass(model: Autoencoder, video: Tensor, halo: Halo) -> Tensor:
    with tf32(model.encoder_tf32):
        return model.moments(video.to(model.dtype), halo)


def _latents_pass(model: Autoencoder, statistics: LatentStatistics, video: Tensor, halo: Halo) -> Tensor:
    mean, _ = _moments_pass(model, video, halo).chunk(2, dim=1)
    return statistics.normalized(mean)


def _prepare(model: Autoencoder) -> None:
    if model.device.type == "cpu" and not needs_plain_ops():
        ensure_kernels()
    if model.device.type == "cuda":
        lay_out_weights(model)
    if model.device.type == "mps":
        check_convolutions(model.device)


def records_gradients(model: Autoencoder, x: Tensor) -> bool:
    """Return whether a call with `x` would record gradients."""
    weights = (parameter.requires_grad for parameter in model.parameters())
    return torch.is_grad_enabled() and (x.requires_grad or any(weights))


def open_stream(
    model: Autoencoder,
    direction: Direction,
    *,
    moments: bool = False,
    raw: bool = False,
    latents_per_pass: int | None = None,
    tiling: Tiling | None = None,
    neighbors: Neighbors | None = None,
    plan: Callable[[Tensor], tuple[int | None, Tiling | None]] | None = None,
    one_push: bool = False,
) -> "Stream":
    """Return a stream that takes frames or normalized latents and returns normalized latents or frames.

    Args:
        model: The model.
        direction: "encode" or "decode".
        moments: Whether encoding returns mean and log-variance of the raw latents instead.
        raw: Whether decoding takes raw latents instead.
        latents_per_pass: Latents per pass; default as many as keep the device busy.
        tiling: How pictures are tiled; default whole pictures.
        neighbors: The holders of the pixels around the clip, where it is a part of a larger picture.
        plan: Returns latents per pass and tiling by the first chunk instead.
        one_push: Whether the clip will come in one chunk.
    """
    config, encodes = model.config, direction == "encode"
    side, unit = (config.spatial_compression, config.temporal_compression) if encodes else (1, 1)

    def choose(chunk: Tensor) -> ChunkSize:
        latents, tiles = (latents_per_pass, tiling) if plan is None else plan(chunk)
        pixels = chunk[:, :1, :1].numel() // side**2
        device = device_of(chunk)
        on = None if device.type == "meta" else device  # the benchmark's models of shapes tell which they stand for
        chosen = choose_chunk_size(model, pixels, latents, in_frames=unit, neighbors=neighbors, device=on)
        return chosen._replace(tiling=tiles)

    def network(device: torch.device) -> tuple[Network, object]:
        # Statistics are built once per stream: a GPU waits for numbers from the host, and a CUDA graph must find them
        # at the same address.
        if encodes and moments:
            return partial(_moments_pass, model), None
        dtype = model.dtype if encodes else model.decoder_dtype
        statistics = LatentStatistics.none(device) if raw else LatentStatistics.of(config, dtype, device)
        if encodes:
            return partial(_latents_pass, model, statistics), statistics
        return partial(decode_pass, model, statistics=statistics), statistics

    out_frames = 1 if encodes else config.temporal_compression
    frames = {"in_frames": unit, "out_frames": out_frames}
    history = InputHistory(model, encodes=encodes, keep=not one_push)
    kind = direction, moments, raw
    return Stream(model, network, kind=kind, choose=choose, **frames, history=history, neighbors=neighbors)


class Stream:
    """Runs the chunks that are pushed to it in passes: the clip's first frame alone, then several frames at a time.

    Args:
        model: The model, whose dtype, device and mode must not change during the stream.
        network: Returns, for a device, the function that computes a pass from (B, C, n, H, W) and a halo, and the
            tensors that it reads besides the weights.
        kind: Tells functions of one model apart.
        choose: Returns the chunk size, given the first chunk.
        in_frames: Frames of the input per latent after the first one.
        out_frames: Frames of the result per latent.
        history: Keeps the inputs that a pass may have to be repeated from.
        neighbors: The holders of the pixels around the clip; default none.
    """

    def __init__(
        self,
        model: Autoencoder,
        network: Callable[[torch.device], tuple[Network, object]],
        *,
        kind: Hashable,
        choose: Callable[[Tensor], ChunkSize],
        in_frames: int,
        out_frames: int,
        history: InputHistory,
        neighbors: Neighbors | None = None,
    ) -> None:
        self._model = model
        self._build_network = network
        self._kind = kind
        self._choose = choose
        self._in_frames = in_frames
        self._out_frames = out_frames
        self._history = history
        self._neighbors = neighbors
        self._runner: PassRunner | None = None  # from the first chunk on
        self._mode: tuple[object, ...] = ()
        # (B, C, n, H, W): frames that do not make up a latent yet. None before the first chunk.
        self._waiting: Tensor | None = None
        self._passed = 0
        self._interrupted = False

    @property
    def position(self) -> int:
        """Frames pushed so far."""
        return self._passed + self._waiting_frames

    @property
    def frames_needed(self) -> int:
        """Frames missing from the last latent; a clip has at least one frame."""
        if self.position == 0:
            return 1
        return -self._waiting_frames % self._in_frames

    def push(self, x: Tensor) -> Tensor | None:
        """Take the clip's next frames (B, C, n, H, W), any n, and return what can be computed by now, if anything.

        Raises:
            UserError: B, C, H, W, the dtype or the device differs from that of earlier chunks; or the model or autocast
                changed; or the first chunk's size does not fit a budget. Nothing was taken then. Or an earlier pass was
                interrupted.
        """
        self._check_intact()
        if self._waiting is not None:
            check_like_before(x, self._waiting)
        elif x.shape[2] == 0:
            return None
        if self._runner is None:
            runner = self._start(x)
        elif (mode := self._current_mode()) != self._mode:
            raise UserError(
                f"This stream began with (dtypes, device, training, autocast) {self._mode}, and now they are {mode};"
                " finish it before changing the model or autocast."
            )
        else:
            runner = self._runner
        runner.check_weights()
        if self._waiting is not None and self._waiting_frames > 0:
            x = torch.cat([self._waiting, x], dim=2)
        self._interrupted = True
        due, done, start, result = self._frames_due(x.shape[2], runner), 0, 0, None
        while (count := runner.next_pass(x.shape[2] - start)) > 0:
            part = runner.run(x[:, :, start : start + count], self._passed, start)
            if part is None:
                runner.recompute_caches(self._passed, x[:, :, :start])
                continue
            start += count
            if result is None:
                # The whole result at once: joining parts at the end would take twice the memory.
                result = part if part.shape[2] == due else part.new_empty(*part.shape[:2], due, *part.shape[3:])
            if result is not part:
                result[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        # A copy, because the caller may fill the same memory with the next frames.
        self._waiting = x[:, :, start:].clone()
        if _may_run_out(x.device):
            self._history.append(x[:, :, :start])
        self._passed += start
        self._interrupted = False
        runner.halo.workspace.trim()
        return result

    def flush(self) -> None:
        """End the clip.

        Raises:
            UserError: Nothing was pushed, frames are left over that do not make up a latent, or a pass was interrupted.
        """
        self._check_intact()
        check_ended(self.position, self._waiting_frames, self._in_frames)
        self.close()

    def close(self) -> None:
        """Leave the graph to other streams; this one takes no more chunks."""
        if self._runner is not None:
            self._runner.close(interrupted=self._interrupted)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything that the next pass depends on; nothing before the first chunk."""
        self._check_intact()
        if self._waiting is None:
            return {}
        caches = {} if self._runner is None else self._runner.halo.state_dict(self._model, "halo.")
        return {
            "position": torch.tensor(self.position, device="cpu"),
            "waiting": self._waiting.clone(memory_format=torch.contiguous_format),
            **caches,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state, whose tensors are copied to the model's device.

        Raises:
            UserError: The stream has begun, or the state contradicts itself.
        """
        if self._waiting is not None:
            raise UserError("A stream that has begun takes no state; load it into a new one.")
        if not state:
            return
        position, waiting = int(state["position"]), state["waiting"]
        # The first frame passes at once, and then every whole latent.
        if waiting.shape[2] != (max(0, position - 1) % self._in_frames) or not 0 <= position < _MOST_FRAMES:
            raise UserError(f"The state is damaged: of {position} frames, {waiting.shape[2]} wait.")
        passed = position - waiting.shape[2]
        waiting = waiting.to(self._model.device, copy=True)
        if passed > 0:
            batch, channels, _, height, width = waiting.shape
            # The state brings its tiling: the caches of tiles fit no other.
            first = waiting.new_empty(1).expand(batch, channels, 1, height, width)
            runner = self._start(first, tiling_of(state, "halo."))
            runner.halo.load_state_dict(self._model, state, "halo.")
        self._waiting, self._passed = waiting, passed

    def _start(self, x: Tensor, *resumed: Tiling | None) -> PassRunner:
        """Fix what does not change during the stream, by its first chunk; a resumed stream keeps its tiling."""
        if self._model.training and any(isinstance(module, nn.BatchNorm3d) for module in self._model.modules()):
            raise UserError(
                "A model with batch norm is in training mode, in which its statistics depend on the chunks; call its"
                " eval() first, or pass the whole clip at once."
            )
        chunk_size = self._choose(x)
        if resumed:
            chunk_size = chunk_size._replace(tiling=resumed[0])
        _prepare(self._model)
        self._mode = self._current_mode()
        network, constants = self._build_network(x.device)
        self._runner = PassRunner(
            self._model,
            network,
            constants,
            kind=(self._kind, self._mode),
            chunk_size=chunk_size,
            in_frames=self._in_frames,
            history=self._history,
            neighbors=self._neighbors,
            device=x.device,
        )
        return self._runner

    def _current_mode(self) -> tuple[object, ...]:
        model, kind = self._model, self._model.device.type
        autocast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
        encoder = "tf32" if model.encoder_tf32 else str(model.dtype)
        decoder = "tf32" if model.decoder_tf32 else str(model.decoder_dtype)
        return encoder, decoder, str(model.device), model.training, autocast

    @property
    def _waiting_frames(self) -> int:
        return 0 if self._waiting is None else self._waiting.shape[2]

    def _check_intact(self) -> None:
        if self._interrupted:
            raise UserError(
                "A pass of this stream was interrupted, and its cache is incomplete; make a new stream, or load a saved"
                " state into it."
            )

    def _frames_due(self, frames: int, runner: PassRunner) -> int:
        first = 1 if runner.halo.at_start and frames > 0 else 0
        return first + (frames - first) // self._in_frames * self._out_frames


def _may_run_out(device: torch.device) -> bool:
    """Whether a device has memory of its own, which may run out in the middle of a pass."""
    return device.type == "cuda"


def check_like_before(x: Tensor, before: Tensor) -> None:
    """Raise a UserError if a chunk (B, C, n, H, W) of a stream differs in more than time from an earlier one."""
    if (*x.shape[:2], *x.shape[3:]) != (*before.shape[:2], *before.shape[3:]):
        raise UserError(
            f"A chunk is {tuple(x.shape)}, which in more than time differs from the chunks before it:"
            f" ({before.shape[0]}, {before.shape[1]}, n, {before.shape[3]}, {before.shape[4]})."
        )
    for kind, now, then in (("dtype", x.dtype, before.dtype), ("device", x.device, before.device)):
        if now != then:
            raise UserError(f"A chunk's {kind} is {now}, but that of the chunks before it is {then}; convert it.")


def check_ended(total: int, left: int, unit: int) -> None:
    """Raise a UserError if a stream ends without frames, or with `left` of `total` that make up no latent of `unit`."""
    if total == 0:
        raise UserError("The stream ended without a single frame; push at least one.")
    if left > 0:
        raise UserError(f"The stream ended after {total} frames; {total - left} or {total - left + unit} would fit.")
