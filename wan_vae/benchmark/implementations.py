"""The two implementations behind one face: ours, and diffusers'."""

import importlib
from pathlib import Path
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wan_vae.checkpoints.detect import config_to_diffusers
from wan_vae.config import VAEConfig
from wan_vae.vae import WanVAE

OURS, THEIRS = "wan_vae", "diffusers"
EXACT = "fp64"
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, EXACT: torch.float64}


class Implementation(Protocol):
    """A VAE ready for inference.

    Attributes:
        network: The module, all of whose layers run as modules.
    """

    network: nn.Module

    def accepted(self, final: Tensor) -> Tensor:
        """Final latents (B, z, t, h, w) -> the latents that `decode` takes."""

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> the mean of its raw latents, (B, z, t, h, w)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, z, t, h, w) -> video (B, 3, T, H, W), clamped to [-1, 1]."""


class Ours:
    """This library's VAE, which decodes final latents."""

    def __init__(self, vae: WanVAE) -> None:
        self.network: nn.Module = vae
        self._vae = vae

    def accepted(self, final: Tensor) -> Tensor:
        return final

    def encode(self, video: Tensor) -> Tensor:
        return self._vae.posterior(video).mode()

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)


class Theirs:
    """diffusers' VAE, which decodes raw latents."""

    def __init__(self, vae: Any, config: VAEConfig) -> None:
        self.network: nn.Module = vae
        self._vae = vae
        with torch.device("meta"):
            self._ours = WanVAE(config)

    def accepted(self, final: Tensor) -> Tensor:
        return self._ours.denormalize(final)

    def encode(self, video: Tensor) -> Tensor:
        mean: Tensor = self._vae.encode(video).latent_dist.mode()
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        video: Tensor = self._vae.decode(latents).sample
        return video


def load(name: str, config: VAEConfig, weights: Path, *, device: str, dtype: torch.dtype) -> Implementation:
    """Load an implementation, all its weights in memory.

    Args:
        name: `OURS` or `THEIRS`.
        config: The architecture.
        weights: What `WanVAE.save` wrote, in the layout of diffusers for `THEIRS`.
        device: Where to.
        dtype: What to compute in.
    """
    implementation: Implementation
    if name == OURS:
        implementation = Ours(WanVAE.from_pretrained(weights, device=device, dtype=dtype))
    else:
        # Without accelerate, which diffusers would otherwise ask for.
        vae = _their_class().from_pretrained(weights, torch_dtype=dtype, low_cpu_mem_usage=False).to(device).eval()
        if dtype == torch.float64:
            _upsample_exactly(vae)
        implementation = Theirs(vae, config)
    for parameter in implementation.network.parameters():
        parameter.sum()  # weights that are mapped from a file would otherwise come in during the first call
    return implementation


def without_weights(name: str, config: VAEConfig, *, device: torch.device, dtype: torch.dtype) -> Implementation:
    """Return an implementation on the meta device, where shapes are all that is computed, in the chunks of `device`."""
    with torch.device("meta"):
        if name == OURS:
            return Ours(_Imagined(config, device).to(dtype).eval().requires_grad_(False))
        arguments = config_to_diffusers(config)
        del arguments["_class_name"]
        # Their own way of converting warns of layers to keep in float32, of which there are none.
        return Theirs(nn.Module.to(_their_class()(**arguments), dtype).eval(), config)


class _Imagined(WanVAE):
    def __init__(self, config: VAEConfig, device: torch.device) -> None:
        super().__init__(config)
        self._imagined = device

    @property
    def device(self) -> torch.device:
        # By this the VAE chooses how many frames go together.
        return self._imagined


def obstacle(config: VAEConfig) -> str | None:
    """Say why there is nothing to compare an architecture with; None where diffusers can be measured on it."""
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed"
    if config.block != "wan":
        return f"diffusers has no residual block of kind {config.block!r}"
    if config.output_upscale != 1:
        return "diffusers does not put together the pixels of a decoder that upscales"
    if config.temporal_compression != 4:
        return f"diffusers takes 4 frames at a time, where this model takes {config.temporal_compression}"
    return None


def unusable(name: str) -> str | None:
    """Say why an implementation that is installed cannot be used; None where it can."""
    try:
        if name == THEIRS:
            _their_class()
    except (AttributeError, ImportError, RuntimeError) as error:  # too old, or broken in one way or another
        return f"diffusers cannot be used ({str(error).strip().partition(chr(10))[0].rstrip('.')})"
    return None


def _their_class() -> Any:
    # By name, for it is optional.
    return importlib.import_module("diffusers").AutoencoderKLWan


def _upsample_exactly(vae: nn.Module) -> None:
    # diffusers rounds to float32 in its nearest-neighbor upsampling, which copies values and needs no rounding.
    for module in vae.modules():
        if isinstance(module, nn.Upsample):
            module.forward = MethodType(nn.Upsample.forward, module)  # type: ignore[method-assign]
