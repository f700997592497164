"""What a benchmark is asked to measure.

The weights that both implementations get: a checkpoint's, or random ones.

The clip and the latents that both implementations get.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.checkpoints import load_checkpoint
from wan_vae.config import VAEConfig, load_config
from wan_vae.errors import UserError
from wan_vae.vae import WanVAE

if TYPE_CHECKING:
    from wan_vae.config import VAEConfig

DIRECTIONS = ("encode", "decode")
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure, and how often.

    Attributes:
        checkpoint: A trained model's file, folder or name; None for random weights.
        preset: With random weights, a config's name or YAML file.
        width: Pixels of the clip.
        height: Pixels of the clip.
        frames: Frames of the clip.
        device: A device's type, such as "cpu".
        dtypes: Some of `DTYPES`.
        directions: Some of `DIRECTIONS`.
        runs: Timed calls of each implementation, direction and dtype.
        warmup: Calls of each before the timed ones, beside one that is always made; all but the first measure memory.
        threads: Of each implementation on a CPU; None for torch's choice.
        errors: Whether outputs are compared with float64.
        profile: Whether to ask where our time goes.
        tune: Whether to choose our kernels for a GPU by measuring them first.
    """

    checkpoint: str | None
    preset: str
    width: int
    height: int
    frames: int
    device: str
    dtypes: tuple[str, ...]
    directions: tuple[str, ...]
    runs: int
    warmup: int
    threads: int | None
    errors: bool
    profile: bool
    tune: bool

    def check_fits(self, config: "VAEConfig") -> None:
        """Refuse a clip that this architecture cannot take.

        Raises:
            UserError: Its length or size does not fit.
        """
        unit, multiple = config.temporal_compression, config.spatial_compression
        if (self.frames - 1) % unit:
            below = (self.frames - 1) // unit * unit + 1
            raise UserError(f"--frames is {self.frames}, not 1 + {unit}k; {below} or {below + unit} would fit.")
        if self.width % multiple or self.height % multiple or not self.width or not self.height:
            raise UserError(
                f"--size is {self.width}x{self.height}; this model takes multiples of {multiple}, such as"
                f" {_nearest(self.width, multiple)}x{_nearest(self.height, multiple)}."
            )


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


SEED = 0


class Weights(NamedTuple):
    """A VAE on the CPU, and what its weights are."""

    vae: WanVAE
    origin: str


def open_weights(job: Job) -> Weights:
    """Return the VAE that a job names.

    Raises:
        UserError: There is no such model, or the clip does not fit it.
    """
    if job.checkpoint is None:
        config = load_config(job.preset)
        job.check_fits(config)
        return Weights(WanVAE.from_weights(config, random_weights(config)), f"random, seed {SEED}")
    checkpoint = load_checkpoint(job.checkpoint)
    job.check_fits(checkpoint.config)
    return Weights(WanVAE.from_weights(checkpoint.config, checkpoint.weights), f"SHA-256 {checkpoint.digest()}")


def random_weights(config: VAEConfig, seed: int = SEED) -> dict[str, Tensor]:
    """Return float32 weights named as in `WanVAE.state_dict()`, none of them at a value that hides a path.

    Scales keep activations near 1, as trained weights do, and the decoder's output clear of the clamp at 1, which would
    hide errors.
    """
    with torch.device("meta"):
        shapes = WanVAE(config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, like, generator) for name, like in shapes.items()}


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():  # counters of batch norms
        return torch.zeros(like.shape, dtype=like.dtype)
    noise = torch.randn(like.shape, generator=generator)
    if name.startswith("decoder.head.conv"):
        noise = 0.1 * noise
    if like.ndim > 1 and not name.endswith("gamma"):
        return noise * like[0].numel() ** -0.5
    if name.endswith(("bias", "running_mean")):
        return 0.1 * noise
    return 1 + 0.1 * noise.clamp(-3, 3)


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
