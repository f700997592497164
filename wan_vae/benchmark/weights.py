"""The weights that both implementations get: a checkpoint's, or random ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.benchmark.job import Job
from wan_vae.checkpoints import read_checkpoint, resolve_checkpoint
from wan_vae.config import VAEConfig, load_config
from wan_vae.vae import WanVAE

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
    checkpoint = read_checkpoint(resolve_checkpoint(job.checkpoint))
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
