"""The weights and inputs that both implementations get."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.benchmark import BenchmarkConfig
from wan_vae.checkpoints import load_checkpoint
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import UserError
from wan_vae.vae import WanVAE

SEED = 0


def check_clip(config: BenchmarkConfig, architecture: VAEConfig) -> None:
    """Raise a UserError if the length or the size of the clip does not fit the architecture."""
    frames, unit, multiple = config.frames, architecture.temporal_compression, architecture.spatial_compression
    if architecture.images_only and frames > 1:
        raise UserError(f"--frames is {frames}, and this model takes single pictures; give --frames 1.")
    if (frames - 1) % unit:
        below = (frames - 1) // unit * unit + 1
        raise UserError(f"--frames is {frames}, not 1 + {unit}k; {below} or {below + unit} would fit.")
    if config.width % multiple or config.height % multiple or not config.width or not config.height:
        width, height = (max(1, round(side / multiple)) * multiple for side in (config.width, config.height))
        raise UserError(
            f"--size is {config.width}x{config.height}; this model takes multiples of {multiple}, such as"
            f" {width}x{height}."
        )


def load_weights(config: BenchmarkConfig) -> tuple[WanVAE, str]:
    """Return the VAE on the CPU, and the seed or the digest of its weights.

    Raises:
        UserError: There is no such model, or the clip does not fit it.
    """
    if config.checkpoint is None:
        architecture = load_config(config.preset)
        check_clip(config, architecture)
        return WanVAE.from_weights(architecture, random_weights(architecture)), f"random, seed {SEED}"
    checkpoint = load_checkpoint(config.checkpoint)
    check_clip(config, checkpoint.config)
    return WanVAE.from_weights(checkpoint.config, checkpoint.weights), f"SHA-256 {checkpoint.digest()}"


def random_weights(config: VAEConfig, seed: int = SEED) -> dict[str, Tensor]:
    """Return random float32 weights with the names of `WanVAE.state_dict()`.

    Every weight affects the output. Activations stay near unit scale, as with trained weights, and the decoder's output
    stays within the clamp to [-1, 1], which would hide errors.
    """
    with torch.device("meta"):
        shapes = WanVAE(config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: _random_weight(name, like, generator) for name, like in shapes.items()}


def _random_weight(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():  # step counters of batch norms
        return torch.zeros(like.shape, dtype=like.dtype)
    noise = torch.randn(like.shape, generator=generator)
    if name.startswith("decoder.head.conv"):
        noise = 0.1 * noise
    if like.ndim > 1 and not name.endswith("gamma"):
        return noise * like[0].numel() ** -0.5
    if name.endswith(("bias", "running_mean")):
        return 0.1 * noise
    return 1 + 0.1 * noise.clamp(-3, 3)


def write_inputs(config: BenchmarkConfig, architecture: VAEConfig, path: Path) -> dict[str, tuple[int, ...]]:
    """Write the inputs to a safetensors file, and return their shapes.

    The float32 tensors are `video`, (1, c, T, H, W) in [-1, 1], and `latents`, the normalized latents of a clip of that
    size, (1, z, t, h, w). Both are smooth; each channel of the latents has mean 0 and standard deviation 1.
    """
    frames = (config.frames - 1) // architecture.temporal_compression + 1
    height, width = (side // architecture.spatial_compression for side in (config.height, config.width))
    channels = architecture.image_channels
    generator = torch.Generator().manual_seed(SEED)
    tensors = {
        "video": (0.4 * smooth_noise((channels, config.frames, config.height, config.width), generator)).clamp(-1, 1),
        "latents": smooth_noise((architecture.latent_channels, frames, height, width), generator),
    }
    save_file(tensors, path)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def smooth_noise(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Return (1, *shape) for a shape (C, T, H, W): upsampled coarse noise plus some fine noise, normalized."""
    channels, *size = shape
    noise = 0.2 * torch.randn(1, *shape, generator=generator)
    for cell in (32, 8):
        coarse = torch.randn(1, channels, *(side // cell + 2 for side in size), generator=generator)
        noise += F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
    centered = noise - noise.mean(dim=(2, 3, 4), keepdim=True)
    return centered / centered.square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
