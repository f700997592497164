"""The VAE: the public face of the library."""

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wan_vae.arguments import check_count, check_flag, check_path, check_type
from wan_vae.checkpoints import load_checkpoint, weights_digest, write_checkpoint
from wan_vae.checkpoints.detect import QWEN_IMAGE_21, config_from_diffusers, config_to_diffusers
from wan_vae.checkpoints.layouts import stored_names
from wan_vae.checkpoints.origin import Origin
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.chunk_size import check_latents_per_pass, choose_chunk_size
from wan_vae.inference.dry_run import dummy_input, make_plan
from wan_vae.inference.passes import Direction, decode_pass, decode_video, encode_moments, records_gradients
from wan_vae.inference.planner import Plan
from wan_vae.inference.stream import ClipStream, DecodeStream, EncodeStream
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.model.blocks import Blocks
from wan_vae.model.halo import Halo, Neighbors
from wan_vae.posterior import LatentStatistics, Posterior, warn_if_raw
from wan_vae.validation import (
    TF32,
    check_channels,
    check_device,
    check_latents,
    check_video,
    check_weights,
    choose_dtypes,
    parse_device,
    parse_dtype,
    parse_dtypes,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from wan_vae.sharding import ShardedVAE


class WanVAE(Autoencoder):
    """The video VAE of Wan2.1, Wan2.2, Qwen-Image and their relatives.

    *Raw* latents are what the network emits, and what diffusers and ComfyUI store; *normalized* latents are
    `(raw - mean) / std` per channel, what Wan's own code and the diffusion models use. `encode` returns and `decode`
    takes normalized ones.

    Sizes: a video (B, 3, T, H, W) in [-1, 1] needs T = 1 + 4k, and H and W that are multiples of the spatial
    compression (8, or 16 for Wan2.2); it becomes latents (B, z, t, h, w) with t = 1 + k.

    Memory and time: without gradients, a clip passes through the network a few latents at a time, which never changes
    the result. `latents_per_pass` sets how many: default as many as keep the device busy. With gradients, and
    in training mode, whose batch norms see all frames, a whole clip passes at once. Streams are for eval mode.
    """

    _origin: Origin | None = None
    _has_seen_latents = False

    @classmethod
    def from_config(cls, config: VAEConfig | str | Path, **changes: Any) -> "WanVAE":
        """Build a VAE with random weights, ready to be trained.

        Args:
            config: A `VAEConfig`, a preset's name such as "wan2.1", or the path of a YAML file.
            changes: Fields of the config to set to other values, such as `block="dense"`.
        """
        if not isinstance(config, VAEConfig):
            check_type("config", config, (str, Path), "a VAEConfig, a preset's name or the path of a YAML file")
            config = load_config(config)
        return cls(VAEConfig.from_dict({**config.to_dict(), **changes}, origin="the changed config"))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> "WanVAE":
        """Load trained weights, ready for inference: in eval mode, with gradients off for the weights.

        Args:
            source: A name ("nano", in this package; "wan2.1", "wan2.2", "qwen-image", "qwen-image-layered",
                "qwen-image-2.1", "lightvae", fetched from the Hugging Face hub and cached), a hub repository, a
                checkpoint file in any layout, or a folder in diffusers' layout.
            device: Where the weights go; default the CPU. "auto" is a GPU if there is one.
            dtype: What they are converted to, a dtype or its name such as "bfloat16"; default as stored, or the widest
                of those stored. "tf32" is float32 whose convolutions may round to TF32 on an NVIDIA GPU; those of
                float32 never do in inference. "auto" is what the commands take: bfloat16 where it is fast, except that
                CPUs encode in float32.

        Raises:
            CheckpointError: The checkpoint is missing, damaged, incomplete, of another model, or holds NaN.
            UserError: There is no such device or dtype.
        """
        check_type("source", source, (str, Path), "a name or a path")
        wanted = None if dtype == "auto" else dtype
        parse_dtype(wanted)  # before anything is loaded
        device = parse_device(device)
        checkpoint = load_checkpoint(source)
        vae = cls.from_weights(checkpoint.config, checkpoint.weights, device=device, dtype=wanted)
        vae._origin = Origin(checkpoint, vae)
        return vae.set_dtypes(**choose_dtypes("auto", vae.device)._asdict()) if dtype == "auto" else vae

    @classmethod
    def from_weights(
        cls,
        config: VAEConfig,
        weights: dict[str, Tensor],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> "WanVAE":
        """Build a VAE around weights named as in `state_dict()`, which are not copied where they need no conversion.

        Raises:
            UserError: There is no such device or dtype; or weights are missing, of another model, or misshapen.
        """
        rounds = dtype == TF32
        device, dtype = parse_device(device), parse_dtype(dtype)
        with torch.device("meta"):
            vae = cls(config)
        vae.encoder_tf32 = vae.decoder_tf32 = rounds
        check_weights(weights, vae.state_dict())
        floating = [weight.dtype for weight in weights.values() if weight.is_floating_point()]
        wanted = dtype or reduce(torch.promote_types, floating)
        converted = {
            # Detached, since the caller's may be trained.
            name: weight.detach().to(device=device, dtype=wanted if weight.is_floating_point() else None)
            for name, weight in weights.items()
        }
        vae.load_state_dict(converted, assign=True)
        return vae.eval().requires_grad_(False)

    @classmethod
    def from_diffusers(cls, vae: nn.Module) -> "WanVAE":
        """Return a VAE that shares the parameters of diffusers' `AutoencoderKLWan` or `AutoencoderKLQwenImage`.

        What is trained, moved or converted there is so here. Gradients and training mode stay as they are there.

        Raises:
            UserError: It is of another class, has another structure, or some of its layers were replaced.
        """
        settings = getattr(vae, "config", None)
        if not isinstance(settings, Mapping) or "temperal_downsample" not in settings:
            raise UserError(f"{type(vae).__name__} is no VAE of diffusers for Wan; pass an AutoencoderKLWan.")
        config = config_from_diffusers(settings)
        with torch.device("meta"):
            model = cls(config)
        theirs = dict(vae.named_parameters())
        names = stored_names([name for name, _ in model.named_parameters()], config, "diffusers")
        differing = set(names.values()) ^ set(theirs)
        if differing:
            raise UserError(f"{type(vae).__name__} has other layers than Wan's, such as {min(differing)!r}.")
        for name, parameter in model.named_parameters():
            there = theirs[names[name]]
            if there.shape != parameter.shape:
                raise UserError(
                    f"{names[name]} is {tuple(there.shape)}, where {tuple(parameter.shape)} belongs, so it cannot be"
                    " shared; save the VAE and load its folder with WanVAE.from_pretrained."
                )
            parameter.requires_grad_(there.requires_grad)  # assigning copies this to the other side
        model.load_state_dict({name: theirs[there] for name, there in names.items()}, assign=True)
        return model.train(vae.training)

    def to_diffusers(self) -> nn.Module:
        """Return diffusers' `AutoencoderKLWan`, or `AutoencoderKLQwenImage` for Qwen-Image-Layered, sharing the
        parameters of this VAE.

        Raises:
            UserError: diffusers is not installed, or cannot hold this architecture.
        """
        settings = config_to_diffusers(self.config)
        if self.config.images_only:
            raise UserError(
                f"{QWEN_IMAGE_21} has weights of another shape, which cannot be shared; write a folder for it with"
                " save(folder, layout='diffusers')."
            )
        try:
            import diffusers
        except ImportError as error:
            raise UserError(f"diffusers cannot be imported ({error}); install it: pip install diffusers.") from error
        with torch.device("meta"):
            model: nn.Module = getattr(diffusers, settings["_class_name"]).from_config(settings)
        names = stored_names([name for name, _ in self.named_parameters()], self.config, "diffusers")
        ours = {there: self.get_parameter(name) for name, there in names.items()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(ours[name].requires_grad)
        model.load_state_dict(ours, assign=True)
        return model.train(self.training)

    def save(self, path: str | Path, *, layout: str = "wan") -> None:
        """Write the weights as they are, in their own dtype.

        Args:
            path: A safetensors file, or, for the layout "diffusers", a folder.
            layout: "wan" for the keys of Wan's own files, "diffusers" for those of `AutoencoderKLWan`.

        Raises:
            UserError: There is no such layout, or it cannot hold this config.
        """
        write_checkpoint(check_path("path", path), self.config, self.state_dict(), layout=layout)

    def encode(self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> normalized latents (B, z, t, h, w), contiguous: the posterior's mean.

        They are in the encoder's dtype, whatever floating-point dtype the video has.

        Args:
            video: The clip, on the device of the model.
            latents_per_pass: Latent frames per pass; an upper limit if `memory` is given.
            memory: A budget for everything the call takes in addition to the loaded model and `video`, the latents
                included: bytes, text such as "4GiB", or "auto" for four fifths of what is free. Where whole pictures
                would take more, the network's larger levels run tile by tile, which takes longer and gives the same up
                to rounding (see `plan`). A call with a budget records no gradients.

        Raises:
            UserError: The video has another shape, dtype or device than is possible, or the budget is too small; the
                message says what would work. With a budget also in training mode, under autocast, and where weights
                would record gradients.
        """
        mean, _ = self._moments(video, latents_per_pass, memory).chunk(2, dim=1)
        return self.normalize(mean)

    def posterior(
        self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Posterior:
        """(B, 3, T, H, W) in [-1, 1] -> the distribution of its raw latents (B, z, t, h, w); otherwise as `encode`."""
        return Posterior.from_moments(self._moments(video, latents_per_pass, memory))

    def _moments(self, video: Tensor, latents_per_pass: int | None, memory: Budget | None) -> Tensor:
        check_video(video, self.config, whole=True)
        check_device(video, self.quant_conv.weight.device)
        latents, tiling = check_latents_per_pass(latents_per_pass), None
        records = records_gradients(self, video)
        with torch.set_grad_enabled(records):
            if memory is not None:
                plan = make_plan(self, "encode", video, latents, memory)
                latents, tiling = plan.latents_per_pass, plan.tiling
            elif latents is None and (records or self.training or torch.compiler.is_compiling()):
                return self.moments(video.to(self.dtype), Halo())
            return encode_moments(self, video, latents, tiling)

    def decode(
        self,
        latents: Tensor,
        *,
        raw: bool = False,
        latents_per_pass: int | None = None,
        memory: Budget | None = None,
    ) -> Tensor:
        """Normalized latents (B, z, t, h, w) -> video (B, 3, T, H, W), clamped to [-1, 1].

        Args:
            latents: The clip.
            raw: Whether the latents are raw, as those of diffusers and ComfyUI.
            latents_per_pass: Latent frames per pass; an upper limit if `memory` is given.
            memory: A budget for everything the call takes in addition to the loaded model and `latents`, the video
                included; see `encode`.

        Raises:
            UserError: The latents have another number of channels or dimensions than this model's, or the budget is
                too small; the message says what would work.
        """
        check_flag("raw", raw)
        check_latents(latents, self.config, whole=True)
        check_device(latents, self.quant_conv.weight.device)
        together, tiling = check_latents_per_pass(latents_per_pass), None
        if not raw and not self._has_seen_latents:
            self._has_seen_latents = warn_if_raw(latents, self.config)
        records = records_gradients(self, latents)
        with torch.set_grad_enabled(records):
            if memory is not None:
                plan = make_plan(self, "decode", latents, together, memory)
                together, tiling = plan.latents_per_pass, plan.tiling
            elif together is None and (records or self.training or torch.compiler.is_compiling()):
                statistics = LatentStatistics.none(latents.device) if raw else None
                return decode_pass(self, latents, Halo(), statistics)
            return decode_video(self, latents, together, tiling, raw=raw)

    def plan(
        self,
        direction: Direction,
        *,
        frames: int,
        height: int,
        width: int,
        memory: Budget,
        batch: int = 1,
        latents_per_pass: int | None = None,
        streaming: bool = False,
        device: torch.device | str | None = None,
    ) -> Plan:
        """Return how a call would keep to a budget of memory. It takes a fraction of a second and computes nothing.

        Args:
            direction: "encode" or "decode".
            frames: Frames of the video, before it is encoded.
            height: Of the video, in pixels.
            width: Of the video, in pixels.
            memory: What the call may take in addition to the loaded model and its input: bytes, text such as "4GiB", or
                "auto".
            batch: Videos per call.
            latents_per_pass: Latents per pass at most; default as without a budget.
            streaming: Whether the clip is a stream, whose length does not matter.
            device: Where the call would run; default the device of the weights, which may be the meta device.

        Raises:
            UserError: The size does not fit, or the budget is too small; the message says what would work.
        """
        size = {"batch": batch, "frames": frames, "height": height, "width": width}
        x = dummy_input(self, direction, **size, streaming=streaming)
        on = parse_device(device, present=False)
        with torch.no_grad():
            return make_plan(self, direction, x, latents_per_pass, memory, streaming=streaming, device=on)

    def encode_stream(
        self,
        chunks: Iterable[Tensor],
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
        moments: bool = False,
    ) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), any n; yields normalized latents as they are ready.

        The concatenated latents are those of `encode`; memory does not grow with the clip's length. No gradients. Where
        chunks cannot be iterated over, push them to an `EncodeStream`.

        Args:
            chunks: The clip.
            latents_per_pass: Latents per pass.
            neighbors: The holders of the pixels around the clip, if it is a part of a larger picture; see `shard`.
            memory: A budget for a chunk of as many latents, in addition to the model and the chunk; see `encode`.
            moments: Whether to yield mean and log-variance of the raw latents, (B, 2z, m, h, w), instead of normalized
                latents: `Posterior.from_moments` takes them.

        Raises:
            UserError: An argument is not possible; or, while iterating, the clip ended after a number of frames that is
                not 1 + 4k.
        """
        stream = EncodeStream(
            self, latents_per_pass=latents_per_pass, neighbors=neighbors, memory=memory, moments=moments
        )
        return _results(stream, chunks)

    def decode_stream(
        self,
        chunks: Iterable[Tensor],
        *,
        latents_per_pass: int | None = None,
        neighbors: Neighbors | None = None,
        memory: Budget | None = None,
    ) -> Iterator[Tensor]:
        """Decode normalized latents that arrive in chunks of (B, z, n, h, w), any n; yields (B, 3, m, H, W) in [-1, 1].

        The concatenated frames are those of `decode`; otherwise as `encode_stream`.
        """
        stream = DecodeStream(self, latents_per_pass=latents_per_pass, neighbors=neighbors, memory=memory)
        return _results(stream, chunks)

    def forward(
        self, video: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Posterior]:
        """Reconstruct a whole clip in one pass, as training does.

        Args:
            video: (B, 3, T, H, W) in [-1, 1].
            sample: Whether to decode a draw from the posterior rather than its mode.
            generator: The source of the draw.

        Returns:
            The reconstruction (B, 3, T, H, W), not clamped, and the posterior of the raw latents.
        """
        check_video(video, self.config, whole=True)
        check_device(video, self.quant_conv.weight.device)
        check_flag("sample", sample)
        posterior = Posterior.from_moments(self.moments(video.to(self.dtype), Halo()))
        raw = posterior.sample(generator) if sample else posterior.mode()
        return self.pixels(raw.to(self.decoder_dtype), Halo()), posterior

    def shard(self, mesh: "DeviceMesh | None" = None, *, gather: bool = True) -> "ShardedVAE":
        """Return this VAE for clips that are cut into parts, one per process: all processes make the same calls.

        Args:
            mesh: The processes, one per device: in rows and columns, or in one dimension, to be arranged by the
                picture's shape; default all processes of the default group.
            gather: Whether every process gets the whole result, or its own part alone (`ShardedVAE.share` says which):
                gathering decoded frames adds half to the bytes that are sent, or more.

        Raises:
            UserError: There is no process group, or the mesh does not hold this process.
        """
        # Not every build of torch has torch.distributed.
        from wan_vae.sharding import ShardedVAE

        return ShardedVAE(self, mesh, gather=gather, digest=self.digest)

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return the latents per pass for a video of height x width pixels.

        Streams are fastest with chunks of this many latent frames, or of the video frames of as many.
        """
        height, width = check_count("height", height), check_count("width", width)
        side = self.config.spatial_compression
        return choose_chunk_size(self, -(-height // side) * -(-width // side), None).frames

    def normalize(self, raw: Tensor) -> Tensor:
        """Raw latents (B, z, t, h, w) -> normalized latents."""
        check_channels(raw, self.config)
        return LatentStatistics.of(self.config, raw.dtype, raw.device).normalized(raw)

    def denormalize(self, normalized: Tensor) -> Tensor:
        """Normalized latents (B, z, t, h, w) -> raw latents."""
        check_channels(normalized, self.config)
        return LatentStatistics.of(self.config, normalized.dtype, normalized.device).denormalized(normalized)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Set whether the backward pass recomputes the activations inside the levels' residual blocks."""
        check_flag("enabled", enabled)
        for module in self.modules():
            if isinstance(module, Blocks):
                module.recompute = enabled

    def set_dtypes(self, *, encoder: torch.dtype | str, decoder: torch.dtype | str) -> "WanVAE":
        """Convert the weights of each half in place: decoding tolerates a lower precision than latents for training.

        Args:
            encoder: A dtype or its name, as for `from_pretrained`.
            decoder: Likewise.

        Raises:
            UserError: There is no such dtype.
        """
        encoding, decoding = parse_dtypes(encoder, decoder)
        for half, dtype in (
            (self.encoder, encoding),
            (self.quant_conv, encoding),
            (self.post_quant_conv, decoding),
            (self.decoder, decoding),
        ):
            half.to(dtype)
        self.encoder_tf32, self.decoder_tf32 = encoder == TF32, decoder == TF32
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickled model has, which is of the checkpoint as long as this one is."""
        state = self.__dict__.copy()
        if self._origin is not None and not self._origin.holds(self):
            state["_origin"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._origin is not None:
            self._origin = self._origin.of(self)

    def digest(self) -> str:
        """Return the SHA-256 of the weights, which latents files keep to tell by which weights they were encoded.

        It is that of the loaded checkpoint, whatever dtype the weights were converted to, as long as neither its file
        nor a weight has changed; otherwise that of the weights as they are. Converting them to a narrower dtype and
        back counts as a change. Where weights were written to by `weight.data`, some values of each are compared.
        """
        found = None if self._origin is None else self._origin.digest(self)
        return weights_digest(self.state_dict()) if found is None else found


def _results(stream: ClipStream, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    check_type("chunks", chunks, Iterable, "an iterable of tensors, such as [video]")
    return _pushed(stream, chunks)


def _pushed(stream: ClipStream, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    with stream:
        for chunk in chunks:
            result = stream.push(chunk)
            if result is not None:
                yield result
