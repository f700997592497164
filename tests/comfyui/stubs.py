"""Stand-ins for the modules of ComfyUI that the node pack imports, written from their interfaces.

`VAE.calls` chooses between the two ways in which versions of ComfyUI call `first_stage_model` and `process_output`.
"""

import types
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan_vae.integrations.comfyui import FirstStageModel, network_from_weights

OLD, NEW = "0.3.64", "0.38"


class Reference(nn.Module):
    """ComfyUI's own network: here diffusers', on the weights of a Wan VAE in Wan's layout."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights
        self.vae: Any = network_from_weights(weights).to_diffusers()

    def encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent_dist.mean

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z, return_dict=False)[0]


class ModelPatcher:
    """Moves a model; it sets attributes of the model, as ComfyUI's does."""

    def __init__(self, model: nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        model.device = offload_device


class VAE:
    """The VAE object."""

    calls = OLD

    def __init__(self, sd: dict[str, Tensor]) -> None:
        self.device = self.output_device = torch.device("cpu")
        self.vae_dtype = torch.float32
        self.disable_offload = "pixel_space_vae" in sd
        self.downscale_ratio = self.upscale_ratio = 1
        self.latent_dim, self.latent_channels, self.output_channels = 2, 3, 3
        self.first_stage_model: Any = nn.Identity()
        self._sd = sd
        if "pixel_space_vae" not in sd:
            self.first_stage_model = None
            if "decoder.middle.0.residual.0.gamma" in sd:
                self.first_stage_model, self.latent_dim = Reference(sd), 3
                side = 16 if "decoder.upsamples.0.upsamples.0.residual.2.weight" in sd else 8
                self.downscale_ratio, self.upscale_ratio = (lambda t: (t + 3) // 4, side, side), (None, side, side)
        if self.calls == NEW:
            self.handles_tiling, self.pad_channel_value = False, None
        self.memory_used_encode = self.memory_used_decode = lambda shape, dtype: 1
        if self.first_stage_model is not None:
            self.patcher = ModelPatcher(self.first_stage_model, load_device=self.device, offload_device=self.device)

    def throw_exception_if_invalid(self) -> None:
        if self.first_stage_model is None:
            raise RuntimeError("ERROR: VAE is invalid: None")

    def get_sd(self) -> dict[str, Tensor]:
        return self._sd

    def process_input(self, image: Tensor) -> Tensor:
        return image * 2 - 1

    def process_output(self, image: Tensor) -> Tensor:
        if self.calls == OLD:
            return ((image + 1) / 2).clamp(0, 1)
        return image.add_(1).div_(2).clamp_(0, 1)

    def _video(self, pixels: Tensor) -> Tensor:
        side = self.downscale_ratio if isinstance(self.downscale_ratio, int) else self.downscale_ratio[-1]
        if self.calls == NEW:
            pixels = pixels[..., : self.output_channels]
            if self.pad_channel_value is not None:
                missing = self.output_channels - pixels.shape[-1]
                pixels = torch.nn.functional.pad(pixels, (0, missing), value=self.pad_channel_value)
        height, width = (size // side * side for size in pixels.shape[1:3])
        top, left = ((size % side) // 2 for size in pixels.shape[1:3])
        pixels = pixels[:, top : top + height, left : left + width]
        return pixels.movedim(-1, 1) if self.latent_dim == 2 else pixels.movedim(-1, 0)[None]

    def encode(self, pixels: Tensor) -> Tensor:
        x = self._video(pixels)
        load_models_gpu(
            [self.patcher],
            memory_required=self.memory_used_encode(x.shape, self.vae_dtype),
            force_full_load=self.disable_offload,
        )
        try:
            return self.first_stage_model.encode(self.process_input(x).to(self.vae_dtype)).float()
        except torch.OutOfMemoryError:
            return self._tiles_of_video(x, tile_x=256, tile_y=256, overlap=64)

    def encode_tiled(self, pixels: Tensor, **tile: int) -> Tensor:
        return self._tiles_of_video(self._video(pixels), **tile)

    def decode(self, samples: Tensor) -> Tensor:
        load_models_gpu(
            [self.patcher],
            memory_required=self.memory_used_decode(samples.shape, self.vae_dtype),
            force_full_load=self.disable_offload,
        )
        try:
            out = self.first_stage_model.decode(samples.to(self.vae_dtype)).float()
            if self.calls == OLD:
                pixels = self.process_output(out)
            else:
                pixels = out.clone()
                self.process_output(pixels[:])
        except torch.OutOfMemoryError:
            pixels = self._tiles_of_latents(samples, tile_x=32, tile_y=32, overlap=8)
        return pixels.movedim(1, -1)

    def decode_tiled(self, samples: Tensor, **tile: int) -> Tensor:
        return self._tiles_of_latents(samples, **tile).movedim(1, -1)

    def _tiles_of_video(self, x: Tensor, **tile: int) -> Tensor:
        if self.calls == NEW and self.handles_tiling:
            return self.first_stage_model.encode_tiled(self.process_input(x).to(self.vae_dtype), **tile).float()
        return self.encode_tiled_3d(x, **tile)

    def _tiles_of_latents(self, samples: Tensor, **tile: int) -> Tensor:
        if self.calls == NEW and self.handles_tiling:
            out = self.first_stage_model.decode_tiled(samples.to(self.vae_dtype), **tile)
            return self.process_output(out.float().clone())
        return self.decode_tiled_3d(samples, **tile)

    def encode_tiled_3d(self, samples: Tensor, **tile: int) -> Tensor:
        raise AssertionError("ComfyUI would blend tiles")

    decode_tiled_3d = encode_tiled_3d


loaded: list[tuple[list[Any], int]] = []
"""What `load_models_gpu` was called with."""


def load_models_gpu(models: list[Any], memory_required: int = 0, force_full_load: bool = False) -> None:
    assert force_full_load or not isinstance(models[0].model, FirstStageModel)
    loaded.append((models, memory_required))


class _Input:
    def __init__(self, name: str, types: Any = None, **options: Any) -> None:
        self.id, self.types, self.options = name, types, options


class _Type:
    Input = _Input

    class Output:
        def __init__(self, **options: Any) -> None:
            self.options = options


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Any]
    outputs: list[Any]
    is_output_node: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


@dataclass
class VideoComponents:
    images: Tensor
    frame_rate: Fraction
    audio: Any = None


class VideoFromComponents:
    def __init__(self, components: VideoComponents) -> None:
        self._components = components

    def get_components(self) -> VideoComponents:
        return self._components


class ProgressBar:
    def __init__(self, total: int) -> None:
        self.total, self.current = total, 0

    def update_absolute(self, value: int, total: int | None = None) -> None:
        assert value <= self.total
        self.current = value


def modules(base: Path) -> dict[str, types.ModuleType]:
    """Return the modules by name; `base` has the folders input, output and models/vae."""

    def module(name: str, **content: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(content)
        return made

    def save_image_path(prefix: str, folder: str) -> tuple[str, str, int, str, str]:
        target = Path(folder) / prefix
        target.parent.mkdir(parents=True, exist_ok=True)
        count = len(list(target.parent.glob(f"{target.name}_*")))
        return str(target.parent), target.name, count + 1, str(Path(prefix).parent), prefix

    def full_path(kind: str, name: str) -> str | None:
        path = base / "models" / kind / name
        return str(path) if path.is_file() else None

    kinds = ("Vae", "Latent", "Video", "Image", "Audio", "Float", "String", "Combo", "MultiType")
    io = module(
        "io",
        ComfyNode=object,
        Schema=Schema,
        NodeOutput=NodeOutput,
        FolderType=types.SimpleNamespace(output="output"),
        **{kind: type(kind, (_Type,), {}) for kind in kinds},
    )
    ui = module("ui", SavedResult=lambda name, folder, kind: {"filename": name, "subfolder": folder, "type": kind})
    management = module(
        "comfy.model_management",
        vae_dtype=lambda device, allowed: torch.float32,
        get_free_memory=lambda device: 2**30,
        load_models_gpu=load_models_gpu,
    )
    made = [
        module("comfy", __path__=[]),
        management,
        module("comfy.model_patcher", ModelPatcher=ModelPatcher),
        module("comfy.sd", VAE=VAE),
        module("comfy.utils", ProgressBar=ProgressBar),
        module("comfy_api", __path__=[]),
        module(
            "comfy_api.latest",
            ComfyExtension=object,
            InputImpl=types.SimpleNamespace(VideoFromComponents=VideoFromComponents),
            Types=types.SimpleNamespace(VideoComponents=VideoComponents),
            io=io,
            ui=ui,
        ),
        module(
            "folder_paths",
            get_filename_list=lambda kind: sorted(path.name for path in (base / "models" / kind).iterdir()),
            get_full_path=full_path,
            get_input_directory=lambda: str(base / "input"),
            get_output_directory=lambda: str(base / "output"),
            get_annotated_filepath=lambda name: str(base / "input" / name),
            exists_annotated_filepath=lambda name: (base / "input" / name).is_file(),
            get_save_image_path=save_image_path,
        ),
    ]
    by_name = {one.__name__: one for one in made}
    for name, one in by_name.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(by_name[parent], child, one)
    return by_name
