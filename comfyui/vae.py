"""ComfyUI's VAE object, whose `first_stage_model` computes with this package's network."""

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from wan_vae.inference.budget import parse_bytes
from wan_vae.integrations.comfyui import FirstStageModel, network_from_weights
from wan_vae.vae import WanVAE

_DTYPES = [torch.bfloat16, torch.float16, torch.float32]  # as ComfyUI has them for Wan, the preferred first


class FastVAE(comfy.sd.VAE):
    """A VAE that all nodes of ComfyUI take: same latents, same pictures, exact tiles where memory is short."""

    @classmethod
    def of(cls, vae: Any) -> "FastVAE":
        """Return a VAE that computes with the weights of another one, which stays as it is.

        Raises:
            UserError: It is no Wan VAE. It is not passed through: somebody put the node there to be faster, and a
                notice in the server's log reaches nobody in front of a browser.
        """
        if isinstance(vae, cls):
            return vae
        vae.throw_exception_if_invalid()
        fast = cls.__new__(cls)
        fast.__dict__.update(vars(vae))
        fast._use(network_from_weights(vae.get_sd(), vae.vae_dtype))
        return fast

    @classmethod
    def load(cls, checkpoint: str | Path, dtype: str) -> "FastVAE":
        """Load a checkpoint as `WanVAE.from_pretrained` does; the dtype "auto" is ComfyUI's choice.

        Raises:
            UserError: The checkpoint is missing, damaged, or no Wan VAE.
        """
        # ComfyUI's smallest VAE brings along every attribute that this version of ComfyUI knows.
        fast = cls(sd={"pixel_space_vae": torch.tensor(1.0)})
        wanted = comfy.model_management.vae_dtype(fast.device, _DTYPES) if dtype == "auto" else dtype
        network = WanVAE.from_pretrained(checkpoint, dtype=wanted)
        fast.vae_dtype = network.dtype
        fast._use(network)
        return fast

    def _use(self, network: WanVAE) -> None:
        management = comfy.model_management
        stage = FirstStageModel(network, self.device, management.get_free_memory)
        self.first_stage_model = stage
        # A patcher of its own, as ComfyUI may stream the weights of its own layers, and moves whole those of others.
        self.patcher = comfy.model_patcher.ModelPatcher(
            stage, load_device=self.device, offload_device=self.patcher.offload_device
        )
        self.size = None  # in newer versions, measured at the next use
        self.disable_offload = True  # of weights, while the network computes: it has none of ComfyUI's layers
        self.memory_used_encode, self.memory_used_decode = stage.encode_memory, stage.decode_memory
        self.handles_tiling = True
        config = network.config
        unit, side, enlarged = config.temporal_compression, config.spatial_compression, config.output_upscale
        self.working_dtypes = _DTYPES
        self.latent_channels, self.output_channels = config.latent_channels, config.image_channels
        self.pad_channel_value = 1.0 if config.image_channels == 4 else None  # opaque
        if config.images_only:
            self.latent_dim, self.downscale_ratio, self.upscale_ratio = 2, side, side * enlarged
            self.downscale_index_formula = self.upscale_index_formula = None
            return
        self.latent_dim = 3
        self.downscale_ratio = (lambda frames: max(0, (frames + unit - 1) // unit), side, side)
        self.downscale_index_formula = (unit, side, side)
        self.upscale_ratio = (lambda times: max(0, times * unit - unit + 1), side * enlarged, side * enlarged)
        self.upscale_index_formula = (unit, side * enlarged, side * enlarged)

    @property
    def network(self) -> WanVAE:
        """The network, on the device where ComfyUI has it at present."""
        return self.first_stage_model.network

    def loaded(self, direction: str, height: int, width: int, memory: str) -> WanVAE:
        """Return the network on the device where it computes, which ComfyUI has made room on for a stream."""
        if memory == "auto":
            required = self.first_stage_model.stream_memory(direction, height, width)
        else:
            required = parse_bytes(memory, self.device)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=required, force_full_load=True)
        return self.first_stage_model.on(self.device)

    def get_sd(self) -> dict[str, Tensor]:
        """Return the weights as ComfyUI's own network names them."""
        return self.first_stage_model.stored_weights()

    # Versions of ComfyUI without `handles_tiling` call these. Tiles are chosen by memory, whatever sizes are given.

    def encode_tiled_3d(self, samples: Tensor, **tile: object) -> Tensor:
        """(B, 3, T, H, W) in [0, 1] -> raw latents."""
        x = self.process_input(samples).to(self.vae_dtype).to(self.device)
        return self.first_stage_model.encode_tiled(x, **tile).to(self.output_device).float()

    def decode_tiled_3d(self, samples: Tensor, **tile: object) -> Tensor:
        """Raw latents -> (B, 3, T, H, W) in [0, 1]."""
        video = self.first_stage_model.decode_tiled(samples.to(self.vae_dtype).to(self.device), **tile)
        return self.process_output(video.to(self.output_device).float())
