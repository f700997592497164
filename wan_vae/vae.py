"""The VAE: the public face of the library."""

from collections.abc import Iterable, Iterator
from functools import cache, partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wan_vae.checkpoints import read_checkpoint, resolve_checkpoint, write_checkpoint
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.chunk_size import ChunkSize, check_latents_per_pass, choose_chunk_size
from wan_vae.inference.dry_run import dummy_input, make_plan
from wan_vae.inference.planner import Plan
from wan_vae.inference.stream import DecodeStream, EncodeStream, Stream
from wan_vae.inference.tiling import TiledHalo, Tiling
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.blocks import Blocks
from wan_vae.model.halo import Halo, Neighbors
from wan_vae.posterior import LatentStatistics, Posterior
from wan_vae.validation import check_latents, check_video

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from wan_vae.checkpoints import Checkpoint
    from wan_vae.sharding import ShardedVAE


class WanVAE(Autoencoder):
    """The video VAE of Wan2.1, Wan2.2, Qwen-Image and their relatives.

    Two kinds of latents are kept apart: *raw* latents are what the network emits (and what diffusers and ComfyUI
    store); *final* latents are `(raw - mean) / std` by channel (what Wan's own code and the diffusion models use).

    Sizes: a video (B, 3, T, H, W) in [-1, 1] needs T = 1 + 4k, and H and W that are multiples of the spatial
    compression (8, or 16 for Wan2.2); it becomes latents (B, z, t, h, w) with t = 1 + k.

    Memory and time: where no gradients are recorded, a clip passes through the network a few latents at a time. That
    never changes the result. `latents_per_pass` sets how many; default one, and on a GPU as many as keep it busy.
    Where gradients are recorded, and in training mode, whose batch norms look at all frames, a whole clip passes at
    once, and so does a single image, of which nothing has to be remembered; streams are for eval mode.
    """

    @classmethod
    def from_config(cls, config: VAEConfig | str | Path, **changes: Any) -> "WanVAE":
        """Build a VAE with random weights, ready to be trained.

        Args:
            config: A `VAEConfig`, a preset's name such as "wan2.1", or the path of a YAML file.
            changes: Fields of the config to set to other values, such as `block="dense"`.
        """
        if not isinstance(config, VAEConfig):
            config = load_config(config)
        return cls(VAEConfig.from_dict({**config.to_dict(), **changes}, origin="the changed config"))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "WanVAE":
        """Load trained weights, ready for inference: in eval mode, with gradients off for the weights.

        Args:
            source: A name ("nano", in this package; "wan2.1", "wan2.2", "qwen-image", "lightvae", fetched from the
                Hugging Face hub and cached), a checkpoint file in any layout, or a folder in diffusers' layout.
            device: Where the weights go; default the CPU.
            dtype: What they are converted to; default as stored, or the widest of those stored.

        Raises:
            CheckpointError: The checkpoint is missing, damaged, incomplete, of another model, or holds NaN.
        """
        checkpoint = read_checkpoint(resolve_checkpoint(source))
        vae = cls.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype=dtype)
        vae._checkpoint = checkpoint
        return vae

    def digest(self) -> str:
        """Return the digest of the checkpoint that the weights were loaded from."""
        assert self._checkpoint is not None
        return self._checkpoint.digest()

    _checkpoint: "Checkpoint | None" = None

    @classmethod
    def from_weights(
        cls,
        config: VAEConfig,
        weights: dict[str, Tensor],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "WanVAE":
        """Build a VAE around weights named as in `state_dict()`, which are not copied where they need no conversion."""
        with torch.device("meta"):
            vae = cls(config)
        floating = [weight.dtype for weight in weights.values() if weight.is_floating_point()]
        dtype = reduce(torch.promote_types, floating) if dtype is None else dtype
        converted = {
            name: weight.to(device=device, dtype=dtype if weight.is_floating_point() else None)
            for name, weight in weights.items()
        }
        vae.load_state_dict(converted, assign=True)
        return vae.eval().requires_grad_(False)

    def save(self, path: str | Path, *, layout: str = "wan") -> None:
        """Write the weights as they are, in their own dtype.

        Args:
            path: A safetensors file, or, for the layout "diffusers", a folder.
            layout: "wan" for the keys of Wan's own files, "diffusers" for those of `AutoencoderKLWan`.

        Raises:
            UserError: There is no such layout, or it cannot hold this config.
        """
        write_checkpoint(Path(path), self.config, self.state_dict(), layout=layout)

    def encode(self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> final latents (B, z, t, h, w): the posterior's mean, normalized.

        Args:
            video: The clip.
            latents_per_pass: How many latents go through the network together, or at most, if there is a budget.
            memory: A budget for all that the call takes beside the loaded model and `video`, the latents included:
                bytes, text such as "4GiB", or "auto" for what the device has left. Where whole pictures would take
                more, the network's larger levels run tile by tile, which changes nothing but the time (see `plan`).

        Raises:
            UserError: T, H or W does not fit, or the budget is too small; the message says what would do.
        """
        return self.normalize(self.posterior(video, latents_per_pass=latents_per_pass, memory=memory).mode())

    def posterior(
        self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Posterior:
        """(B, 3, T, H, W) in [-1, 1] -> the distribution of its raw latents (B, z, t, h, w); else as `encode`."""
        check_video(video, self.config, whole=True)
        records = self._records(video)
        with torch.set_grad_enabled(records):
            if memory is not None:
                plan = make_plan(self, "encode", video, latents_per_pass, memory)
                return Posterior.from_moments(self._moments(video, plan.latents_per_pass, plan.tiling))
            if latents_per_pass is None and (records or self.training):
                return Posterior.from_moments(self._encode_pass(video, Halo()))
            return Posterior.from_moments(self._moments(video, latents_per_pass, None))

    def decode(self, latents: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """Final latents (B, z, t, h, w) -> video (B, 3, T, H, W), clamped to [-1, 1].

        Args:
            latents: The clip.
            latents_per_pass: How many of them go through the network together, or at most, if there is a budget.
            memory: A budget for all that the call takes beside the loaded model and `latents`, the video included:
                bytes, text such as "4GiB", or "auto" for what the device has left. Where whole pictures would take
                more, the network's larger levels run tile by tile, which changes nothing but the time (see `plan`).

        Raises:
            UserError: The latents have another number of channels or dimensions than this model's, or the budget is
                too small; the message says what would do.
        """
        check_latents(latents, self.config, whole=True)
        records = self._records(latents)
        with torch.set_grad_enabled(records):
            if memory is not None:
                plan = make_plan(self, "decode", latents, latents_per_pass, memory)
                return self._decoded(latents, plan.latents_per_pass, plan.tiling)
            if latents_per_pass is None and (records or self.training):
                return self._decode_pass(
                    latents, Halo(), LatentStatistics.of(self.config, self.decoder_dtype, latents.device)
                )
            return self._decoded(latents, latents_per_pass, None)

    def plan(
        self,
        call: Literal["encode", "decode"],
        *,
        frames: int,
        height: int,
        width: int,
        memory: Budget,
        batch: int = 1,
        latents_per_pass: int | None = None,
        streaming: bool = False,
        device: torch.device | None = None,
    ) -> Plan:
        """Return how a call would keep to a budget of memory. It takes a fraction of a second, and computes nothing.

        Args:
            call: What is to be done.
            frames: Of the video, as it is before it is encoded.
            height: Likewise.
            width: Likewise.
            memory: What the call may take beside the loaded model and its input: bytes, text such as "4GiB", or "auto".
            batch: How many videos go together.
            latents_per_pass: How many latents go together at most; default as without a budget.
            goes_on: The clip is a stream, whose length does not matter.
            device: Where it would be computed, if not where the weights are: they may be on the meta device.

        Raises:
            UserError: The size does not fit, or the budget is too small; the message says what would do.
        """
        x = dummy_input(self, call, (batch, 3, frames, height, width))
        with torch.no_grad():
            return make_plan(self, call, x, latents_per_pass, memory, streaming=streaming, device=device)

    def encode_stream(
        self,
        chunks: Iterable[Tensor],
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
    ) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), any n; yields final latents as soon as they are due.

        The concatenated latents are those of `encode`; memory does not grow with the clip's length. No gradients.
        Where the chunks are not there to be iterated over, an `EncodeStream` takes them one by one.

        Args:
            chunks: The clip.
            latents_per_pass: How many latents go through the network together.
            neighbors: Who holds what lies around the clip, if it is a part of a larger picture; see `shard`.
            memory: A budget for all that a chunk of as many latents takes beside the model and the chunk; see `encode`.

        Raises:
            UserError: The clip ended after a number of frames that is not 1 + 4k.
        """
        with EncodeStream(self, latents_per_pass=latents_per_pass, neighbors=neighbors, memory=memory) as stream:
            for chunk in chunks:
                latents = stream.push(chunk)
                if latents is not None:
                    yield latents

    def decode_stream(
        self,
        chunks: Iterable[Tensor],
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
    ) -> Iterator[Tensor]:
        """Decode final latents that arrive in chunks of (B, z, n, h, w), any n; yields (B, 3, m, H, W) in [-1, 1].

        The concatenated frames are those of `decode`; memory does not grow with the clip's length. No gradients.
        Where the chunks are not there to be iterated over, a `DecodeStream` takes them one by one.

        Args:
            chunks: The latents.
            latents_per_pass: How many of them go through the network together.
            neighbors: Who holds what lies around them, if they are a part of a larger picture; see `shard`.
            memory: A budget for all that a chunk of as many latents takes beside the model and the chunk; see `decode`.
        """
        with DecodeStream(self, latents_per_pass=latents_per_pass, neighbors=neighbors, memory=memory) as stream:
            for chunk in chunks:
                video = stream.push(chunk)
                if video is not None:
                    yield video

    def forward(
        self, video: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Posterior]:
        """Reconstruct a whole clip in one pass, as training does.

        Args:
            video: (B, 3, T, H, W) in [-1, 1].
            sample: Decode a draw from the posterior rather than its mode.
            generator: Where the draw comes from.

        Returns:
            The reconstruction (B, 3, T, H, W), not clamped, and the posterior of the raw latents.
        """
        check_video(video, self.config, whole=True)
        posterior = Posterior.from_moments(self._encode_pass(video, Halo()))
        raw = posterior.sample(generator) if sample else posterior.mode()
        return self.pixels(raw, Halo()), posterior

    def shard(self, mesh: "DeviceMesh | None" = None, *, gather: bool = True) -> "ShardedVAE":
        """Return this VAE for clips that are cut in parts, one a process: it is called in all of them alike.

        Args:
            mesh: The processes, one a device: in rows and columns, or in one dimension, to be arranged as it suits each
                picture; default all processes of the default group.
            gather: Whether every process gets the whole result, or its own part alone (which it is, `share` tells):
                frames that go to everyone are half as many bytes as all else that is sent, or more.

        Raises:
            UserError: There is no process group, or the mesh does not hold this process.
        """
        # Not every build of torch can do it.
        from wan_vae.sharding import ShardedVAE

        return ShardedVAE(self, mesh, gather=gather)

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return how many latents of a video of height x width pixels go through the network together by themselves.

        Who feeds a stream does best to push as many at a time, or the frames of as many.
        """
        pixels = -(-height // self.config.spatial_compression) * -(-width // self.config.spatial_compression)
        return choose_chunk_size(self, pixels, None).group

    def normalize(self, raw: Tensor) -> Tensor:
        """Raw latents (B, z, t, h, w) -> final latents."""
        return LatentStatistics.of(self.config, raw.dtype, raw.device).normalized(raw)

    def denormalize(self, final: Tensor) -> Tensor:
        """Final latents (B, z, t, h, w) -> raw latents."""
        return LatentStatistics.of(self.config, final.dtype, final.device).denormalized(final)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Whether a backward pass recomputes the activations inside the levels' residual blocks, or keeps them."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.recompute = enabled

    def set_dtypes(self, *, encoder: torch.dtype, decoder: torch.dtype) -> "WanVAE":
        """Convert the weights of each half in place: a decoder bears a lower precision than latents kept for training.

        Streams that have begun must not go on with it.
        """
        for half, dtype in (
            (self.encoder, encoder),
            (self.quant_conv, encoder),
            (self.post_quant_conv, decoder),
            (self.decoder, decoder),
        ):
            half.to(dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the encoder's weights, and of the decoder's unless `set_dtypes` gave it another."""
        return self.quant_conv.weight.dtype

    @property
    def decoder_dtype(self) -> torch.dtype:
        """The dtype of the decoder's weights."""
        return self.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.quant_conv.weight.device

    def _encode_pass(self, video: Tensor, halo: Halo) -> Tensor:
        return self.moments(video.to(self.dtype), halo)

    def _decode_pass(self, latents: Tensor, halo: Halo, statistics: LatentStatistics) -> Tensor:
        raw = statistics.denormalized(latents.to(self.decoder_dtype))
        video = self.pixels(raw, halo)
        # What tiles were put together to is nobody else's.
        return video.clamp_(-1.0, 1.0) if isinstance(halo, TiledHalo) else video.clamp(-1.0, 1.0)

    def _moments(
        self,
        video: Tensor,
        latents_per_pass: int | None,
        tiling: Tiling | None,
        neighbors: Neighbors | None = None,
    ) -> Tensor:
        if tiling is not None or video.shape[2] == 1:
            return self._encode_pass(video, Halo(neighbors) if tiling is None else TiledHalo(tiling, neighbors))
        stream = self._encoding(latents_per_pass, neighbors=neighbors)
        moments = stream.push(video)
        stream.flush()
        assert moments is not None
        return moments

    def _decoded(
        self,
        latents: Tensor,
        latents_per_pass: int | None,
        tiling: Tiling | None,
        neighbors: Neighbors | None = None,
    ) -> Tensor:
        if tiling is not None or latents.shape[2] == 1:
            halo = Halo(neighbors) if tiling is None else TiledHalo(tiling, neighbors)
            return self._decode_pass(
                latents, halo, LatentStatistics.of(self.config, self.decoder_dtype, latents.device)
            )
        stream = self._decoding(latents_per_pass, neighbors=neighbors)
        video = stream.push(latents)
        stream.flush()
        assert video is not None
        return video

    def _encoding(
        self,
        latents_per_pass: int | None,
        *,
        final: bool = False,
        neighbors: Neighbors | None = None,
        tiling: Tiling | None = None,
        memory: Budget | None = None,
    ) -> Stream:
        """Return a stream of moments, or of final latents."""
        unit = self.config.temporal_compression
        chosen = check_latents_per_pass(latents_per_pass)
        _check_one_pace(neighbors, memory)

        def pace(video: Tensor) -> ChunkSize:
            latents, tiles = chosen, tiling
            if memory is not None:
                plan = make_plan(self, "encode", video, chosen, memory, streaming=True)
                latents, tiles = plan.latents_per_pass, plan.tiling
            pixels = video[:, :1, :1].numel() // self.config.spatial_compression**2
            return choose_chunk_size(self, pixels, latents, unit=unit, neighbors=neighbors)._replace(tiling=tiles)

        # Found once: a GPU stops to take numbers, and a recorded pass must find them where they were.
        statistics = cache(partial(LatentStatistics.of, self.config))

        def latents(video: Tensor, halo: Halo) -> Tensor:
            raw = Posterior.from_moments(self._encode_pass(video, halo)).mode()
            return statistics(raw.dtype, raw.device).normalized(raw)

        return Stream(latents if final else self._encode_pass, pace=pace, unit=unit, becomes=1, neighbors=neighbors)

    def _decoding(
        self,
        latents_per_pass: int | None,
        *,
        neighbors: Neighbors | None = None,
        tiling: Tiling | None = None,
        memory: Budget | None = None,
    ) -> Stream:
        chosen = check_latents_per_pass(latents_per_pass)
        _check_one_pace(neighbors, memory)

        def pace(latents: Tensor) -> ChunkSize:
            count, tiles = chosen, tiling
            if memory is not None:
                plan = make_plan(self, "decode", latents, chosen, memory, streaming=True)
                count, tiles = plan.latents_per_pass, plan.tiling
            return choose_chunk_size(self, latents[:, :1, :1].numel(), count, neighbors=neighbors)._replace(
                tiling=tiles
            )

        # Found once: a GPU stops to take numbers, and a recorded pass must find them where they were.
        statistics = cache(partial(LatentStatistics.of, self.config))

        def network(latents: Tensor, halo: Halo) -> Tensor:
            return self._decode_pass(latents, halo, statistics(self.decoder_dtype, latents.device))

        return Stream(network, pace=pace, unit=1, becomes=self.config.temporal_compression, neighbors=neighbors)

    def _records(self, x: Tensor) -> bool:
        weights = (parameter.requires_grad for parameter in self.parameters())
        return torch.is_grad_enabled() and (x.requires_grad or any(weights))


def _check_one_pace(neighbors: Neighbors | None, memory: Budget | None) -> None:
    if neighbors is not None and memory is not None:
        raise UserError(
            "A part of a picture has no budget of its own, for all parts go in step; the streams of `vae.shard()` take"
            " one."
        )
