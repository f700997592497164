"""The encoder's output as a distribution over raw latents, and the statistics that normalize latents."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wan_vae.arguments import shown
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.validation import DTYPES, can_be_looked_at, check_tensor

_LATENTS_LOOKED_AT = 2
_CLEARLY_RAW = 0.1  # nats per value; raw latents of clips are tenths more likely to be raw than normalized


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Posterior:
    """A diagonal normal distribution over raw latents (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114).

    Attributes:
        mean: (B, z, t, h, w).
        logvar: (B, z, t, h, w), the logarithm of the variance, clamped to [-30, 20].

    Raises:
        UserError: They are no floating-point tensors of one shape, dtype and device.
    """

    mean: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        for name, tensor in vars(self).items():
            check_tensor(tensor, f"The posterior's {name} is")
            if tensor.ndim != 5 or tensor.dtype not in DTYPES.values():
                raise UserError(
                    f"The posterior's {name} is {tuple(tensor.shape)} of {tensor.dtype}; it must be (B, z, t, h, w) of"
                    " floating-point numbers."
                )
        mean, logvar = self.mean, self.logvar
        if (mean.shape, mean.dtype, mean.device) != (logvar.shape, logvar.dtype, logvar.device):
            raise UserError(
                f"The posterior's mean is {tuple(mean.shape)} of {mean.dtype} on {mean.device}, but its logvar is"
                f" {tuple(logvar.shape)} of {logvar.dtype} on {logvar.device}; they must be alike."
            )

    @classmethod
    def from_moments(cls, moments: Tensor) -> "Posterior":
        """Split the encoder's output (B, 2z, t, h, w) into mean and log-variance.

        Raises:
            UserError: It is no floating-point tensor of this shape.
        """
        check_tensor(moments, "The moments are")
        if moments.ndim != 5 or moments.shape[1] % 2 or moments.dtype not in DTYPES.values():
            raise UserError(
                f"The moments are {tuple(moments.shape)} of {moments.dtype}; they must be (B, 2z, t, h, w) of"
                " floating-point numbers."
            )
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """The standard deviation (B, z, t, h, w)."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """The variance (B, z, t, h, w)."""
        return torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """Return the most likely raw latents, the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw raw latents; differentiable in mean and log-variance.

        Raises:
            UserError: The generator is not one of the latents' device.
        """
        if generator is not None and not (
            isinstance(generator, torch.Generator) and generator.device.type == self.mean.device.type
        ):
            raise UserError(
                f"The generator is {shown(generator)}; it must be None or torch.Generator({str(self.mean.device)!r})."
            )
        # Compiled for clips of any size, torch.randn takes no generator, not even None.
        noise = torch.empty(self.mean.shape, device=self.mean.device, dtype=self.mean.dtype).normal_(
            generator=generator
        )
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Return the Kullback-Leibler divergence from a standard normal, summed over each clip's latents: (B,)."""
        # Half precision cannot hold a sum of thousands of terms.
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        mean, logvar = self.mean.to(wide), self.logvar.to(wide)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


class LatentStatistics(NamedTuple):
    """Mean and standard deviation of each raw latent channel over the training data, (1, z, 1, 1, 1)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, config: VAEConfig, dtype: torch.dtype, device: torch.device) -> "LatentStatistics":
        """Return a model's statistics in a dtype, but at least float32: bfloat16 would round their five digits."""
        wide = torch.promote_types(dtype, torch.float32)
        lists = (config.latent_mean, config.latent_std)
        return cls(*(torch.tensor(values, dtype=wide, device=device).view(1, -1, 1, 1, 1) for values in lists))

    @classmethod
    def none(cls, device: torch.device) -> "LatentStatistics":
        """Return mean 0 and standard deviation 1, with which normalized latents are the raw ones."""
        return cls(torch.zeros(1, device=device), torch.ones(1, device=device))

    def raw_margin(self, latents: Tensor) -> float:
        """Return how much likelier `latents` (B, z, t, h, w) are raw than normalized, in nats per value.

        Under both hypotheses every channel is a normal distribution: with this mean and standard deviation if they are
        raw, with 0 and 1 if they are normalized. 0 for a model that does not normalize.
        """
        sample = latents.to(self.mean.dtype)
        raw = -0.5 * ((sample - self.mean) / self.std).square().mean() - self.std.log().mean()
        return float(raw + 0.5 * sample.square().mean())

    def normalized(self, raw: Tensor) -> Tensor:
        """Raw latents (B, z, t, h, w) -> normalized latents, contiguous, as safetensors wants what it saves."""
        return ((raw - self.mean) / self.std).to(raw.dtype).contiguous()

    def normalized_logvar(self, raw: Tensor) -> Tensor:
        """Log-variance of raw latents (B, z, t, h, w), as `Posterior` has it -> that of the normalized latents."""
        return (raw - 2 * self.std.log()).to(raw.dtype)

    def denormalized(self, latents: Tensor) -> Tensor:
        """Normalized latents (B, z, t, h, w) -> raw latents."""
        return (latents * self.std + self.mean).to(latents.dtype)


def warn_if_raw(latents: Tensor, config: VAEConfig) -> bool:
    """Log a warning if latents that are passed as normalized look raw; return whether they could be looked at."""
    if not can_be_looked_at(latents):
        return False
    statistics = LatentStatistics.of(config, latents.dtype, latents.device)
    if statistics.raw_margin(latents[:, :, :_LATENTS_LOOKED_AT].detach()) > _CLEARLY_RAW:
        logging.getLogger("wan_vae").warning(
            "These latents look raw, as those of diffusers and ComfyUI are, but decode takes normalized ones; pass"
            " raw=True, or normalize them first."
        )
    return True
