"""diffusers on this package's network: pipelines keep their VAE, which computes the same frames faster.

Examples:
    >>> from diffusers import WanPipeline
    >>> from wan_vae.integrations.diffusers import accelerate
    >>> pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    >>> handle = accelerate(pipe)  # handle.restore() takes it back

The instance's `_encode` and `_decode` are replaced, which `encode` and `decode` call after the hooks of offloading and
the slicing of batches; class, config, parameters and saved files stay as they are. Latents are raw, as in diffusers.
"""

import logging
import operator
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from wan_vae.checkpoints.detect import config_from_diffusers
from wan_vae.errors import UserError
from wan_vae.inference.budget import Budget
from wan_vae.vae import WanVAE
from wan_vae.validation import DTYPES

_logger = logging.getLogger("wan_vae")
_CLASSES = (AutoencoderKLWan, AutoencoderKLQwenImage)


def accelerate(pipeline_or_vae: Any, *, memory: Budget | None = None) -> "Acceleration":
    """Let a pipeline's VAE, or a VAE, compute with this package's network, on its own parameters.

    Encoding and decoding give what diffusers gives without tiling, to rounding. With `enable_tiling`, diffusers blends
    tiles that see no neighbors; here the tiles are exact, and chosen by the memory that is free. Where this network
    cannot stand in, a call goes to diffusers' own, with one log line for each reason: gradients, training mode,
    parameters elsewhere (sequential and group offload), layerwise casting, hooks or replaced layers inside the VAE,
    sizes that are no multiple of the compression.

    Args:
        pipeline_or_vae: A pipeline with a `vae`, or an AutoencoderKLWan or AutoencoderKLQwenImage.
        memory: A budget for every call in addition to the VAE and its input: bytes, text such as "4GiB", or "auto";
            None for none, or "auto" while tiling is enabled.

    Raises:
        UserError: There is no such VAE, or its structure is not Wan's.
    """
    vae: Any = getattr(pipeline_or_vae, "vae", pipeline_or_vae)
    if not isinstance(vae, _CLASSES):
        known = " or ".join(kind.__name__ for kind in _CLASSES)
        raise UserError(f"{type(vae).__name__} is no VAE that can be accelerated; pass a pipeline with an {known}.")
    acceleration = Acceleration(vae, memory)
    acceleration.connect()
    vae.__dict__.update(_encode=acceleration.encode, _decode=acceleration.decode)
    return acceleration


class Acceleration:
    """What `accelerate` put into a VAE.

    It is copied and pickled with the VAE, and the copy acts on the copied parameters.
    """

    def __init__(self, vae: Any, memory: Budget | None = None) -> None:
        """Use `accelerate` instead."""
        self.vae = vae
        self.memory = memory
        self._class = next(kind for kind in _CLASSES if isinstance(vae, kind))
        self._config = config_from_diffusers(vae.config)
        # Made on the VAE's parameters at the first call, and again when these were replaced.
        self._network: WanVAE | None = None
        self._parameters: list[Tensor] = []
        self._said: set[str] = set()

    def connect(self) -> None:
        """Make the network on the VAE's present parameters; a UserError if its structure is not Wan's."""
        self._network, self._parameters = WanVAE.from_diffusers(self.vae), list(self.vae.parameters())

    def restore(self) -> None:
        """Give the VAE back diffusers' own methods."""
        for name in ("_encode", "_decode"):
            self.vae.__dict__.pop(name, None)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> mean and log-variance of raw latents, (B, 2z, t, h, w): `_encode`."""
        network = self._ready(x, self._config.image_channels, self._config.spatial_compression)
        if network is None:
            moments: Tensor = self._class._encode(self.vae, x)
            return moments
        unit = self._config.temporal_compression
        frames = 1 + (x.shape[2] - 1) // unit * unit  # as in diffusers, which leaves out the rest
        return network._moments(x[:, :, :frames], None, self._budget())

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Raw latents (B, z, t, h, w) -> video (B, 3, T, H, W) in [-1, 1]: `_decode`."""
        network = self._ready(z, self._config.latent_channels, 1)
        if network is None:
            result: DecoderOutput | tuple[Tensor] = self._class._decode(self.vae, z, return_dict=return_dict)
            return result
        video = network.decode(z, raw=True, memory=self._budget())
        return DecoderOutput(sample=video) if return_dict else (video,)

    def _budget(self) -> Budget | None:
        return "auto" if self.memory is None and self.vae.use_tiling else self.memory

    def _ready(self, x: Tensor, channels: int, multiple: int) -> WanVAE | None:
        """Return the network on the VAE's present parameters; None, after a log line, where it cannot stand in."""
        obstacle = self._obstacle(x, channels, multiple)
        if obstacle is None:
            parameters = list(self.vae.parameters())
            if len(parameters) == len(self._parameters) and all(map(operator.is_, parameters, self._parameters)):
                assert self._network is not None
                return self._network.eval()
            try:
                self.connect()
                return self._network
            except UserError as error:
                obstacle = str(error).rstrip(".")
        if obstacle not in self._said:
            self._said.add(obstacle)
            _logger.warning(f"diffusers' own {self._class.__name__} computes: {obstacle}.")
        return None

    def _obstacle(self, x: Tensor, channels: int, multiple: int) -> str | None:
        parameters = list(self.vae.parameters())
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
            return "gradients are recorded; call it under torch.no_grad()"
        if self.vae.training:
            return "it is in training mode; call its eval()"
        if any(p.is_meta for p in parameters):
            return "sequential offload keeps its parameters elsewhere"
        dtypes = {p.dtype for p in parameters}
        if not dtypes <= set(DTYPES.values()):
            return f"its parameters are stored in {' and '.join(sorted(map(str, dtypes)))}, and cast layer by layer"
        if dtypes != {x.dtype} or {p.device for p in parameters} != {x.device}:
            return f"the input is {x.dtype} on {x.device}, and the parameters are not"
        for name, module in self.vae.named_modules():
            if name and ("forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks):
                return f"{name} has hooks, as offloading and layerwise casting set them"
        if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape or any(size % multiple for size in x.shape[3:]):
            return f"the input is {tuple(x.shape)}, where (B, {channels}, T, {multiple}h, {multiple}w) is expected"
        return None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the VAE has parameters of its own, on which a network is made at the first call.
        return {**self.__dict__, "_network": None, "_parameters": []}


class FastAutoencoderKLWan(AutoencoderKLWan):
    """An `AutoencoderKLWan` that computes with this package's network: for `from_pretrained(..., vae=...)`.

    It is loaded and saved like its parent, whose files it reads and writes.
    """

    def _encode(self, x: Tensor) -> Tensor:
        return self._acceleration().encode(x)

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        return self._acceleration().decode(z, return_dict)

    def _acceleration(self) -> Acceleration:
        if "_made" not in self.__dict__:
            self.__dict__["_made"] = Acceleration(self)
        made: Acceleration = self.__dict__["_made"]
        return made
