"""Tiny autoencoders (TAEHV) for the latents of Wan's VAEs: taew2_1, taew2_2, taew2_2_super, lighttaew2_1, lighttaew2_2.

>>> from wan_vae import TinyVAE
>>> tiny = TinyVAE.from_pretrained("taew2_1.safetensors")
>>> video = tiny.decode(latents)  # normalized latents of Wan2.1, (1, 16, 5, 60, 104) -> (1, 3, 17, 480, 832) in [-1, 1]

They are quick and need little memory, and are less exact than the VAE whose latents they share.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.arguments import check_count, check_flag, check_type, shown
from wan_vae.checkpoints import resolve_checkpoint, weights_digest
from wan_vae.checkpoints.tiny import holds_tiny, load_tiny
from wan_vae.config import MODEL_OF_CHANNELS, load_config
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.inference.chunk_size import check_latents_per_pass
from wan_vae.inference.passes import check_ended, check_like_before
from wan_vae.model.tiny import FRAMES_PER_LATENT, Memory, TinyConfig, run_tiny, tiny_decoder, tiny_encoder
from wan_vae.ops.precision import tf32
from wan_vae.posterior import LatentStatistics, warn_if_raw
from wan_vae.vae import WanVAE
from wan_vae.validation import (
    TF32,
    check_device,
    check_latents,
    check_video,
    choose_dtypes,
    parse_device,
    parse_dtype,
    parse_dtypes,
)

_PIXELS_PER_PASS = 2**19  # of the pictures of one latent; more are hardly faster on a CPU, and take more memory


class TinyVAE(nn.Module):
    """A tiny autoencoder, called like `WanVAE`: the same sizes, value ranges and normalized latents.

    Latent j of a clip stands for frames 4j - 3 to 4j, and latent 0 for frame 0 alone, as those of Wan do: of the four
    frames that the decoder makes of latent 0, the last is kept. The encoder makes latent j of frames 4j to 4j + 3 and
    what it remembers of those before. So the last latent of 1 + 4k frames needs three more, for which the last frame is
    repeated, as upstream does, and a stream gives each latent three frames later than that of `WanVAE` would.

    Attributes:
        config: The VAE whose latents these are, wan2.1 or wan2.2: sizes, and statistics of latents.
        tiny_config: The structure of this one.

    Without gradients, memory does not grow with the clip's length, and how clips are cut never changes the result.
    """

    encoder_tf32 = False
    decoder_tf32 = False
    _has_seen_latents = False

    def __init__(self, tiny_config: TinyConfig) -> None:
        super().__init__()
        check_type("tiny_config", tiny_config, TinyConfig, "a TinyConfig; TinyVAE.from_pretrained takes files")
        self.tiny_config = tiny_config
        self.config = load_config(MODEL_OF_CHANNELS[tiny_config.latent_channels])
        self.encoder, self.decoder = tiny_encoder(tiny_config), tiny_decoder(tiny_config)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        raw: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> "TinyVAE":
        """Load trained weights, ready for inference: in eval mode, with gradients off for the weights.

        Args:
            source: A file, or "owner/name/path/of/file" on the Hugging Face hub.
            raw: Whether the network works on raw latents. That changes what it is fed, not what callers pass, and a
                wrong value gives wrong colors. Nothing in a file tells: None goes by the file's name, lighttae* for raw
                and taew* for normalized latents, and takes any other for normalized, with a notice.
            device: Where the weights go, as of `WanVAE.from_pretrained`.
            dtype: What they are converted to, as of `WanVAE.from_pretrained`.

        Raises:
            CheckpointError: The file is missing, damaged, incomplete, of another model, or holds NaN.
            UserError: There is no such device or dtype.
        """
        check_type("source", source, (str, Path), "a path")
        check_type("raw", raw, (bool, type(None)), "True, False or None")
        rounds, chooses = dtype == TF32, dtype == "auto"
        device, dtype = parse_device(device), parse_dtype(None if chooses else dtype)
        config, weights = load_tiny(resolve_checkpoint(source), raw=raw)
        wanted = dtype or reduce(torch.promote_types, (weight.dtype for weight in weights.values()))
        with torch.device("meta"):
            vae = cls(config)
        vae.load_state_dict({name: weight.to(device, wanted) for name, weight in weights.items()}, assign=True)
        vae.encoder_tf32 = vae.decoder_tf32 = rounds
        vae.eval().requires_grad_(False)
        return vae.set_dtypes(**choose_dtypes("auto", vae.device)._asdict()) if chooses else vae

    def encode(self, video: Tensor, *, latents_per_pass: int | None = None, memory: Budget | None = None) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> normalized latents (B, z, t, h, w), in the encoder's dtype.

        Args:
            video: The clip, of 1 + 4k frames.
            latents_per_pass: Latents per pass; default `default_chunk_size`.
            memory: None: a tiny autoencoder keeps to no budget. In float32 it takes about 2 KiB for each pixel of a
                frame, in addition to the result.

        Raises:
            UserError: T, H or W does not fit, or a budget is given; the message says what would work.
        """
        check_video(video, self.config, whole=True)
        return torch.cat(list(self._encoded([video], _checked(latents_per_pass, memory), gradients=True)), dim=2)

    def decode(
        self,
        latents: Tensor,
        *,
        raw: bool = False,
        latents_per_pass: int | None = None,
        memory: Budget | None = None,
    ) -> Tensor:
        """Normalized latents (B, z, t, h, w) -> video (B, 3, T, H, W), clamped to [-1, 1], in the decoder's dtype.

        Args:
            latents: The clip.
            raw: Whether these latents are raw, as those of diffusers and ComfyUI. What the network works on, the `raw`
                of `from_pretrained`, does not matter here.
            latents_per_pass: Latents per pass; default `default_chunk_size`.
            memory: None; see `encode`.

        Raises:
            UserError: The latents have another number of channels or dimensions, or a budget is given.
        """
        check_latents(latents, self.config, whole=True)
        check_flag("raw", raw)
        if not raw and not self._has_seen_latents:
            self._has_seen_latents = warn_if_raw(latents, self.config)
        frames, done, video = 1 + FRAMES_PER_LATENT * (latents.shape[2] - 1), 0, None
        for part in self._decoded([latents], _checked(latents_per_pass, memory), raw=raw, gradients=True):
            if video is None:  # the whole result at once: joining parts at the end would take twice the memory
                video = part if part.shape[2] == frames else part.new_empty(*part.shape[:2], frames, *part.shape[3:])
            if video is not part:
                video[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        assert video is not None
        return video

    def encode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks of (B, 3, n, H, W), any n; yields normalized latents as they are ready.

        The concatenated latents are those of `encode`. Memory does not grow with the clip's length. No gradients.

        Raises:
            UserError: An argument is not possible; or, while iterating, a chunk does not fit, or the clip ended after a
                number of frames that is not 1 + 4k.
        """
        check_type("chunks", chunks, Iterable, "an iterable of tensors, such as [video]")
        return self._encoded(chunks, _checked(latents_per_pass, memory), gradients=False)

    def decode_stream(
        self, chunks: Iterable[Tensor], *, latents_per_pass: int | None = None, memory: Budget | None = None
    ) -> Iterator[Tensor]:
        """Decode normalized latents that arrive in chunks of (B, z, n, h, w), any n; yields (B, 3, m, H, W) in [-1, 1].

        The concatenated frames are those of `decode`; otherwise as `encode_stream`.
        """
        check_type("chunks", chunks, Iterable, "an iterable of tensors, such as [latents]")
        return self._decoded(chunks, _checked(latents_per_pass, memory), raw=False, gradients=False)

    def _encoded(self, chunks: Iterable[Tensor], latents: int | None, *, gradients: bool) -> Iterator[Tensor]:
        position, memory, waiting = 0, Memory(), None
        for chunk in chunks:
            check_video(chunk, self.config, whole=False)
            check_device(chunk, self.device)
            position += chunk.shape[2]
            if waiting is not None:
                check_like_before(chunk, waiting)
                chunk = torch.cat([waiting, chunk], dim=2)
            step = FRAMES_PER_LATENT * (latents or self.default_chunk_size(*chunk.shape[3:]))
            end = chunk.shape[2] // FRAMES_PER_LATENT * FRAMES_PER_LATENT
            for start in range(0, end, step):
                yield self._latents_pass(chunk[:, :, start : min(end, start + step)], memory, gradients)
            waiting = chunk[:, :, end:].clone()  # a view would keep the chunk, and its owner may fill it anew
        check_ended(position, (position - 1) % FRAMES_PER_LATENT, FRAMES_PER_LATENT)
        assert waiting is not None
        yield self._latents_pass(waiting.expand(-1, -1, FRAMES_PER_LATENT, -1, -1), memory, gradients)

    def _latents_pass(self, video: Tensor, memory: Memory, gradients: bool) -> Tensor:
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            frames = ((video.transpose(1, 2) + 1) / 2).to(self.dtype)
            frames = F.pixel_unshuffle(frames, self.tiny_config.patch_size)
            with tf32(self.encoder_tf32):
                latents = run_tiny(self.encoder, frames, memory).transpose(1, 2)
            if self.tiny_config.raw:
                latents = LatentStatistics.of(self.config, latents.dtype, latents.device).normalized(latents)
            return latents.contiguous()

    def _decoded(
        self, chunks: Iterable[Tensor], latents: int | None, *, raw: bool, gradients: bool
    ) -> Iterator[Tensor]:
        memory, before = Memory(), None
        for chunk in chunks:
            check_latents(chunk, self.config, whole=False)
            check_device(chunk, self.device)
            if before is not None:
                check_like_before(chunk, before)
            before = chunk[:, :, :0].clone()  # a view would keep the chunk
            side = self.config.spatial_compression
            step = latents or self.default_chunk_size(chunk.shape[3] * side, chunk.shape[4] * side)
            for start in range(0, chunk.shape[2], step):
                yield self._video_pass(chunk[:, :, start : start + step], memory, raw, gradients)
        check_ended(len(memory), 0, 1)

    def _video_pass(self, latents: Tensor, memory: Memory, raw: bool, gradients: bool) -> Tensor:
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            if raw != self.tiny_config.raw:
                statistics = LatentStatistics.of(self.config, latents.dtype, latents.device)
                latents = statistics.normalized(latents) if raw else statistics.denormalized(latents)
            trimmed = 0 if memory else FRAMES_PER_LATENT - 1
            with tf32(self.decoder_tf32):
                frames = run_tiny(self.decoder, latents.transpose(1, 2).to(self.decoder_dtype), memory)
            frames = F.pixel_shuffle(frames[:, trimmed:], self.tiny_config.patch_size)
            return (2 * frames.clamp(0, 1) - 1).transpose(1, 2).contiguous()

    def default_chunk_size(self, height: int, width: int) -> int:
        """Return the latents per pass for a video of height x width pixels."""
        pixels = FRAMES_PER_LATENT * check_count("height", height) * check_count("width", width)
        return max(1, _PIXELS_PER_PASS // pixels)

    def set_dtypes(self, *, encoder: torch.dtype | str, decoder: torch.dtype | str) -> "TinyVAE":
        """Convert the weights of each half in place, as `WanVAE.set_dtypes`."""
        encoding, decoding = parse_dtypes(encoder, decoder)
        self.encoder.to(encoding)
        self.decoder.to(decoding)
        self.encoder_tf32, self.decoder_tf32 = encoder == TF32, decoder == TF32
        return self

    def digest(self) -> str:
        """Return the SHA-256 of the weights as they are, which latents files keep."""
        return weights_digest(self.state_dict())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the encoder's weights, and of the decoder's unless `set_dtypes` gave it another."""
        return next(self.encoder.parameters()).dtype

    @property
    def decoder_dtype(self) -> torch.dtype:
        """The dtype of the decoder's weights."""
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device


def load_vae(
    source: str | Path,
    *,
    raw: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> WanVAE | TinyVAE:
    """Load a checkpoint of either kind, told by its tensors; `raw` is for tiny autoencoders alone.

    `device` and `dtype` are those of `WanVAE.from_pretrained`.

    Raises:
        UserError: As by `WanVAE.from_pretrained` and `TinyVAE.from_pretrained`; or `raw` is given for a `WanVAE`.
    """
    check_type("source", source, (str, Path), "a name or a path")
    path = resolve_checkpoint(source)
    if holds_tiny(path):
        return TinyVAE.from_pretrained(path, raw=raw, device=device, dtype=dtype)
    if raw is not None:
        raise UserError(
            f"{source} is no tiny autoencoder, and takes normalized latents; leave --checkpoint-values (in Python, raw)"
            " out."
        )
    return WanVAE.from_pretrained(path, device=device, dtype=dtype)


def load_on_best_device(source: str | Path) -> WanVAE | TinyVAE:
    """Load a checkpoint of either kind in its own dtype, on a GPU if there is one.

    Raises:
        UserError: As by `load_vae`.
    """
    return load_vae(source, device="auto")


def check_no_budget(memory: Budget | None) -> None:
    """Raise a UserError for a budget of memory, to which no tiny autoencoder keeps."""
    if memory is not None:
        raise UserError(
            f"The memory is {shown(memory)}, but tiny autoencoders keep to no budget; leave it out: they take about"
            " 2 KiB for each pixel of a frame, however long the clip is."
        )


def _checked(latents_per_pass: int | None, memory: Budget | None) -> int | None:
    check_no_budget(memory)
    return check_latents_per_pass(latents_per_pass)
