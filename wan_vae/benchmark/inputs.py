"""The clip and the latents that both implementations get."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.benchmark.job import Job
from wan_vae.config import VAEConfig

SEED = 0


def write_inputs(job: Job, config: VAEConfig, path: Path) -> dict[str, tuple[int, ...]]:
    """Write a safetensors file with the float32 tensors `video` and `latents`, and return their shapes.

    The video is (1, 3, T, H, W) in [-1, 1]. The latents are final ones of a clip of that size, (1, z, t, h, w): smooth,
    and in each channel of mean 0 and spread 1, as those of real clips are.
    """
    frames = (job.frames - 1) // config.temporal_compression + 1
    height, width = job.height // config.spatial_compression, job.width // config.spatial_compression
    generator = torch.Generator().manual_seed(SEED)
    tensors = {
        "video": (0.4 * smooth_noise((3, job.frames, job.height, job.width), generator)).clamp(-1, 1),
        "latents": smooth_noise((config.latent_channels, frames, height, width), generator),
    }
    save_file(tensors, path)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def smooth_noise(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Return (1, *shape) of (C, T, H, W): coarse noise, interpolated, with some fine noise; mean 0 and spread 1."""
    channels, *size = shape
    noise = 0.2 * torch.randn(1, *shape, generator=generator)
    for cell in (32, 8):
        coarse = torch.randn(1, channels, *(side // cell + 2 for side in size), generator=generator)
        noise += F.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
    dimensions = (2, 3, 4)
    centered = noise - noise.mean(dim=dimensions, keepdim=True)
    return centered / centered.square().mean(dim=dimensions, keepdim=True).sqrt()
