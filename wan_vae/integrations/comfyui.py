"""ComfyUI on this package's network: what the node pack in `comfyui/` computes. ComfyUI itself is not imported here.

In ComfyUI, images are (frames, height, width, channels) in [0, 1], and a LATENT is a dictionary whose "samples" are raw
latents (B, z, t, h, w). Latents files hold normalized ones.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_vae.checkpoints.detect import config_of, find_models
from wan_vae.checkpoints.layouts import stored_names
from wan_vae.chunks import decode_chunks, encode_chunks
from wan_vae.errors import UserError
from wan_vae.inference.budget import SHARE_OF_FREE, Budget, reports_free_memory
from wan_vae.inference.passes import Direction
from wan_vae.io.color import RGB
from wan_vae.io.latents_file import load_latents, save_latents
from wan_vae.io.latents_info import LatentsInfo
from wan_vae.posterior import LatentStatistics
from wan_vae.vae import WanVAE

Progress = Callable[[int, int], object]
"""Called with the number of frames done, and in total."""

CLIP_KEY = "wan_vae"
"""Key of a LATENT that holds the `ClipFacts` of the encoded clip; samplers pass it on."""

_NO_LIMIT = 2**62  # bytes
_DEFAULT_FPS = Fraction(16)  # of Wan2.1
_logger = logging.getLogger("wan_vae")


def network_from_weights(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> WanVAE:
    """Build the network around the weights of a VAE in ComfyUI, which are not copied where they need no conversion.

    Raises:
        UserError: They are not those of a Wan VAE whose pictures ComfyUI decodes to the size that they had.
    """
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    try:
        model = find_models(shapes)[0]
        config, _ = config_of(model, shapes, {}, None)
        with torch.device("meta"):
            stored = stored_names(list(WanVAE(config).state_dict()), config, model.layout)
        names = {model.prefix + there: name for name, there in stored.items()}
        renamed = {names.get(name, name): weight for name, weight in weights.items()}
        network = WanVAE.from_weights(config, renamed, dtype=dtype)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:  # of shapes that contradict each other
        raise UserError(
            f"This VAE cannot be accelerated: {str(error).rstrip('.')}; bypass this node (Ctrl+B)."
        ) from error
    if config.output_upscale != 1:
        # ComfyUI's own network leaves the pixels in the channels, and other nodes put them in their places.
        raise UserError(
            "This VAE decodes to a larger size, which ComfyUI does otherwise; use the node 'Wan VAE: load'."
        )
    return network


class FirstStageModel(nn.Module):
    """What a VAE object of ComfyUI holds as `first_stage_model`.

    Calls keep to the memory that the device has left, by exact tiles where whole pictures do not fit.
    """

    def __init__(self, network: WanVAE, device: torch.device, free_memory: Callable[[torch.device], int]) -> None:
        """Compute with a network.

        Args:
            network: The network, which may be elsewhere until it is used.
            device: Where it is used.
            free_memory: Returns the bytes that a device has left, for devices of which torch cannot tell.
        """
        super().__init__()
        self.network = network
        self.load_device = device
        self._free_memory = free_memory

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1], or (B, 3, H, W) -> the mean of the raw latents.

        As in ComfyUI, the frames after the last 1 + 4k are left out. A network of RGBA takes RGB as opaque.
        """
        if x.ndim == 4:
            return self.encode(x.unsqueeze(2)).squeeze(2)
        x = _with_alpha(x, self.network.config.image_channels)
        unit = self.network.config.temporal_compression
        frames = 1 + (x.shape[2] - 1) // unit * unit
        return self.on(x.device).posterior(x[:, :, :frames], memory=self._budget()).mean

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, t, h, w), or (B, z, h, w) -> video (B, 3, T, H, W) in [-1, 1], or pictures."""
        if z.ndim == 4:
            return self.decode(z.unsqueeze(2)).squeeze(2)
        return self.on(z.device).decode(z, raw=True, memory=self._budget())

    def encode_tiled(self, x: Tensor, **tile: object) -> Tensor:
        """Return what `encode` does: memory decides on the tiles, and `tile`, which ComfyUI would blend, has no say."""
        return self.encode(x)

    def decode_tiled(self, z: Tensor, **tile: object) -> Tensor:
        """Return what `decode` does; see `encode_tiled`."""
        return self.decode(z)

    def on(self, device: torch.device) -> WanVAE:
        """Return the network, all of it on a device: with little memory, ComfyUI leaves parts elsewhere."""
        if any(parameter.device != device for parameter in self.network.parameters()):
            self.network.to(device)
        return self.network

    def encode_memory(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes for encoding a video of this shape in whole pictures, its own included: `memory_used_encode`.

        Like ComfyUI's estimates it is for one video of a batch: by it, ComfyUI decides how many to pass at once.
        """
        unit, side = self._compression
        _, _, frames, height, width = self._five(shape)
        return self._peak("encode", 1 + (frames - 1) // unit * unit, height // side, width // side)

    def decode_memory(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes for decoding raw latents of this shape in whole pictures, one of a batch: `memory_used_decode`."""
        unit, _ = self._compression
        _, _, times, height, width = self._five(shape)
        return self._peak("decode", 1 + (times - 1) * unit, height, width)

    def stream_memory(self, direction: Direction, height: int, width: int) -> int:
        """Bytes for a stream of height x width pixels in whole pictures: `encode_images` and `decode_images`."""
        _, side = self._compression
        return self._peak(direction, 1, -(-height // side), -(-width // side), streaming=True)

    def stored_weights(self) -> dict[str, Tensor]:
        """Return the weights as ComfyUI's own network names them."""
        weights = self.network.state_dict()
        names = stored_names(list(weights), self.network.config, "wan")
        # A GPU has them in another order, which `safetensors` refuses to save.
        return {names[name]: weight.contiguous() for name, weight in weights.items()}

    @property
    def _compression(self) -> tuple[int, int]:
        config = self.network.config
        return config.temporal_compression, config.spatial_compression

    def _budget(self) -> Budget:
        device = self.network.device
        if reports_free_memory(device):
            return "auto"
        return max(1, int(SHARE_OF_FREE * self._free_memory(device)))

    @staticmethod
    def _five(shape: Sequence[int]) -> tuple[int, ...]:
        return (*shape[:2], 1, *shape[2:]) if len(shape) == 4 else tuple(shape)

    def _peak(self, direction: Direction, frames: int, rows: int, columns: int, *, streaming: bool = False) -> int:
        """Return the memory of a call for a video of so many frames, and rows and columns of latents."""
        side = self.network.config.spatial_compression
        size = {"frames": frames, "height": max(1, rows) * side, "width": max(1, columns) * side}
        plan = self.network.plan(direction, **size, memory=_NO_LIMIT, streaming=streaming, device=self.load_device)
        pixels = frames * size["height"] * size["width"]
        return plan.peak + (12 * pixels if direction == "encode" and not streaming else 0)


@dataclass(frozen=True)
class ClipFacts:
    """What a LATENT says of the clip that was encoded.

    Attributes:
        frames, height, width: Its size before padding.
        fps: Its rate; None for pictures without one.
        audio: Its audio as ComfyUI has it.
    """

    frames: int
    height: int
    width: int
    fps: Fraction | None = None
    audio: Any = None


def encode_images(
    network: WanVAE,
    images: Tensor,
    *,
    fps: Fraction | float | None = None,
    audio: Any = None,
    memory: Budget = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Encode a clip of any size and length to a LATENT, padded as `wan-vae encode` does: edges are repeated.

    Args:
        network: The network, on the device where it computes.
        images: The clip, (T, H, W, 3) or, with alpha, (T, H, W, 4); in [0, 1], on any device. A network of RGB leaves
            alpha out, with a notice.
        fps: Its rate.
        audio: Its audio.
        memory: A budget for the network in addition to its weights, as for `encode_file`.
        progress: Called after every chunk.

    Raises:
        UserError: The images are none, or the budget is too small.
    """
    if images.ndim != 4 or images.shape[3] < 3 or 0 in images.shape:
        raise UserError(f"The images are {tuple(images.shape)}; a clip is (frames, height, width, 3).")
    warn_of_alpha(images[..., network.config.image_channels :])
    frames, height, width = images.shape[:3]
    parts = []
    with torch.no_grad():
        chunks = _padded_chunks(network, images)
        for part in encode_chunks(network, chunks, height, width, memory):
            # In float32, as bfloat16 would round a second time.
            parts.append(network.denormalize(part.float()).cpu())
            if progress is not None:
                times = sum(part.shape[2] for part in parts)
                progress(min(frames, 1 + (times - 1) * network.config.temporal_compression), frames)
    return {
        "samples": torch.cat(parts, dim=2),
        CLIP_KEY: ClipFacts(frames, height, width, None if fps is None else _exact(fps), audio),
    }


def warn_of_alpha(alpha: Tensor | None) -> None:
    """Log that the transparency of a clip, (T, H, W) or with channels, in [0, 1], is left out, if there is any."""
    if alpha is not None and bool((alpha < 1).any()):
        _logger.warning("The clip has transparency, which latents do not hold; it is left out.")


def _padded_chunks(network: WanVAE, images: Tensor) -> Iterator[Tensor]:
    """Yield a clip as the network takes it, (1, c, n, H, W) in [-1, 1], with edges and the last frame repeated."""
    unit, side = network.config.temporal_compression, network.config.spatial_compression
    channels = network.config.image_channels
    frames, height, width = images.shape[:3]
    padding = (0, -width % side, 0, -height % side)
    missing = -(frames - 1) % unit
    count = unit * network.default_chunk_size(height, width)
    for start in range(0, frames, count):
        chunk = images[start : start + count, ..., :channels].to(network.device, torch.float32)
        video = F.pad(_with_alpha(chunk.permute(0, 3, 1, 2) * 2 - 1, channels), padding, mode="replicate")
        if start + count >= frames:
            video = torch.cat([video, video[-1:].expand(missing, -1, -1, -1)])
        yield video.transpose(0, 1).unsqueeze(0)


def _with_alpha(x: Tensor, channels: int) -> Tensor:
    """Return RGB or RGBA (n, c, ...) in [-1, 1] for a network of so many channels: opaque, where there is no alpha."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if (x.shape[1], channels) == (3, 4) else x


def decode_images(
    network: WanVAE, latent: Mapping[str, Any], *, memory: Budget = "auto", progress: Progress | None = None
) -> Tensor:
    """Decode a LATENT to images (frames, height, width, 3) in [0, 1] in float32 on the CPU; batches follow each other.

    A network of RGBA gives four channels. A clip that `encode_images` encoded gets the size and the length that it had.

    Args:
        network: The network, on the device where it computes.
        latent: The LATENT.
        memory: A budget for the network in addition to its weights, as for `decode_file`.
        progress: Called after every chunk.

    Raises:
        UserError: The latents are of another model, or the budget is too small.
    """
    samples = _samples(network, latent)
    side = network.config.spatial_compression
    batch, _, _, rows, columns = samples.shape
    facts = clip_facts(network, latent)
    frames, height, width = facts.frames, facts.height, facts.width
    scale = network.config.output_upscale
    images = torch.empty(batch, frames, height * scale, width * scale, network.config.image_channels)
    count = network.default_chunk_size(rows * side, columns * side)
    with torch.no_grad():
        for number, clip in enumerate(torch.split(samples, 1)):  # one at a time: memory is planned for one
            chunks = (
                network.normalize(chunk.to(network.device, torch.float32)) for chunk in torch.split(clip, count, dim=2)
            )
            done = 0
            for video in decode_chunks(network, chunks, rows * side, columns * side, memory):
                part = video[0, :, : frames - done, : height * scale, : width * scale]
                images[number, done : done + part.shape[1]] = part.permute(1, 2, 3, 0).float().add(1).div_(2).cpu()
                done += part.shape[1]
                if progress is not None:
                    progress(number * frames + done, batch * frames)
    return images.flatten(0, 1)


def clip_facts(network: WanVAE, latent: Mapping[str, Any]) -> ClipFacts:
    """Return what a LATENT says of its clip, or, if it says nothing or its size has changed, the size it decodes to."""
    unit, side = network.config.temporal_compression, network.config.spatial_compression
    times, rows, columns = _samples(network, latent).shape[2:]
    facts = latent.get(CLIP_KEY)
    whole = ClipFacts(1 + (times - 1) * unit, rows * side, columns * side)
    if not isinstance(facts, ClipFacts):
        return whole
    padded = (1 + -(-(facts.frames - 1) // unit), -(-facts.height // side), -(-facts.width // side))
    if padded != (times, rows, columns):
        return ClipFacts(whole.frames, whole.height, whole.width, facts.fps, facts.audio)
    return facts


def _samples(network: WanVAE, latent: Mapping[str, Any]) -> Tensor:
    samples: Tensor = latent["samples"]
    channels = network.config.latent_channels
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5) or samples.shape[1] != channels:
        raise UserError(f"The latents are {tuple(samples.shape)}; this VAE's are (B, {channels}, t, h, w).")
    return samples if samples.ndim == 5 else samples.unsqueeze(2)


def frame_rate(fps: float, facts: ClipFacts) -> Fraction:
    """Return a rate as a fraction; for 0 that of the clip or, if it has none, Wan2.1's 16."""
    return _exact(fps) if fps > 0 else facts.fps or _DEFAULT_FPS


def _exact(fps: Fraction | float) -> Fraction:
    # ComfyUI's rates come from floats: 29.97 is a fraction of numbers with 16 digits, which no file holds.
    return Fraction(fps).limit_denominator(2**16)


def save_latent(network: WanVAE, latent: Mapping[str, Any], paths: Sequence[Path], *, fps: float = 0) -> None:
    """Write a LATENT to latents files, which `wan-vae decode` reads: normalized, one clip each.

    Args:
        network: The network that encoded it, or whose diffusion model made it.
        latent: The LATENT.
        paths: The files, one for each clip of the batch.
        fps: Rate of the clip; 0 as in `frame_rate`.

    Raises:
        UserError: A path is taken or cannot be written, or the latents are of another model, NaN or infinite.
    """
    samples, facts = _samples(network, latent), clip_facts(network, latent)
    present = {"audio": facts.audio is not None, "a noise mask": "noise_mask" in latent}
    if any(present.values()):
        left_out = " and ".join(name for name, is_there in present.items() if is_there)
        _logger.warning(f"The latents come with {left_out}, which a latents file does not hold.")
    info = LatentsInfo(
        frames=facts.frames,
        width=facts.width,
        height=facts.height,
        fps=frame_rate(fps, facts),
        pixel_aspect=Fraction(1),
        color=RGB,
        config=network.config,
        checkpoint=network.digest(),
    )
    statistics = LatentStatistics.of(network.config, samples.dtype, samples.device)
    for clip, path in zip(torch.split(samples, 1), paths, strict=True):
        save_latents(path, statistics.normalized(clip), info)


def load_latent(path: Path) -> tuple[dict[str, Any], Fraction]:
    """Read a latents file as a LATENT in float32, and the rate of its clip.

    Raises:
        LatentsError: The file is missing, damaged, or not a latents file.
    """
    latents, info = load_latents(path)
    if info.pixel_aspect != 1:
        _logger.warning(
            f"{path} is of pixels {info.pixel_aspect} times as wide as high, which ComfyUI takes for square."
        )
    raw = LatentStatistics.of(info.config, torch.float32, latents.device).denormalized(latents.float())
    return {"samples": raw, CLIP_KEY: ClipFacts(info.frames, info.height, info.width, info.fps)}, info.fps
