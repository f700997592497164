"""Implementations behind one interface: this library's VAE, that of diffusers, and this library's in OpenVINO."""

import gc
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from wan_vae.checkpoints.detect import config_to_diffusers
from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.inference.passes import Direction
from wan_vae.integrations.export import StreamStep, export_steps
from wan_vae.posterior import LatentStatistics
from wan_vae.vae import WanVAE

WAN_VAE, DIFFUSERS, OPENVINO = "wan_vae", "diffusers", "openvino"
PEERS = (DIFFUSERS, OPENVINO)
EXACT = "fp64"
_OPENVINO_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, EXACT: torch.float64}


@dataclass(frozen=True)
class Implementation:
    """A VAE ready for inference."""

    name: str  # WAN_VAE, DIFFUSERS or OPENVINO
    network: nn.Module
    encode: Callable[[Tensor], Tensor]  # (B, 3, T, H, W) in [-1, 1] -> mean of the raw latents, (B, z, t, h, w)
    decode: Callable[[Tensor], Tensor]  # the result of `to_decoder_input` -> (B, 3, T, H, W) in [-1, 1]
    to_decoder_input: Callable[[Tensor], Tensor]  # normalized latents (B, z, t, h, w); diffusers decodes raw ones


def load(name: str, config: VAEConfig, weights: Path, *, device: torch.device, dtype: torch.dtype) -> Implementation:
    """Load `WAN_VAE`, `DIFFUSERS` or `OPENVINO`, with all weights in memory.

    The checkpoint is one that `WanVAE.save` wrote, in the layout "diffusers" if diffusers is to load it.
    """
    if name == WAN_VAE:
        implementation = _from_wan_vae(WanVAE.from_pretrained(weights, device=device, dtype=dtype))
    elif name == OPENVINO:
        vae = WanVAE.from_pretrained(weights, device=device, dtype=torch.float32)
        implementation = _from_openvino(vae, dtype, torch.get_num_threads())
    else:
        # low_cpu_mem_usage would require accelerate.
        vae = _diffusers_class().from_pretrained(weights, torch_dtype=dtype, low_cpu_mem_usage=False).to(device).eval()
        if dtype == torch.float64:
            _upsample_in_input_dtype(vae)
        implementation = _from_diffusers(vae, config)
    for parameter in implementation.network.parameters():
        parameter.sum()  # reads weights that are memory-mapped, which the first call would do otherwise
    return implementation


def load_on_meta(name: str, config: VAEConfig, *, device: torch.device, dtype: torch.dtype) -> Implementation:
    """Return an implementation on the meta device, which computes shapes only, with the chunk sizes of `device`."""
    with torch.device("meta"):
        if name != DIFFUSERS:
            return _from_wan_vae(_MetaVAE(config, device).to(dtype).eval().requires_grad_(False))
        arguments = config_to_diffusers(config)
        del arguments["_class_name"]
        # diffusers' own `to` warns about layers to keep in float32, of which this model has none.
        return _from_diffusers(nn.Module.to(_diffusers_class()(**arguments), dtype).eval(), config)


class _MetaVAE(WanVAE):
    """Reports another device than that of its weights, because the chunk size depends on the device."""

    def __init__(self, config: VAEConfig, device: torch.device) -> None:
        super().__init__(config)
        self._reported_device = device

    @property
    def device(self) -> torch.device:
        return self._reported_device


def unsupported_reason(config: VAEConfig) -> str | None:
    """Return why diffusers cannot run an architecture; None if it can."""
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed"
    try:
        config_to_diffusers(config)
    except UserError as error:
        return str(error).partition(";")[0]
    if config.output_upscale != 1:
        return "diffusers does not put together the pixels of a decoder that upscales"
    if config.temporal_compression != 4:
        return f"diffusers takes 4 frames at a time, where this model takes {config.temporal_compression}"
    return None


def openvino_computes(dtype: str, device: str) -> bool:
    """Whether OpenVINO is installed and computes in a dtype on a type of device."""
    installed = importlib.util.find_spec("openvino") is not None
    return installed and device == "cpu" and TORCH_DTYPES[dtype] in _OPENVINO_PRECISIONS


def import_error(name: str) -> str | None:
    """Return why an installed implementation cannot be imported; None if it can."""
    try:
        if name == DIFFUSERS:
            _diffusers_class()
    except (AttributeError, ImportError, RuntimeError) as error:  # too old, or a broken dependency
        return f"diffusers cannot be used ({str(error).strip().partition(chr(10))[0].rstrip('.')})"
    return None


def _from_wan_vae(vae: WanVAE) -> Implementation:
    def encode(video: Tensor) -> Tensor:
        return vae.posterior(video).mode()

    return Implementation(WAN_VAE, vae, encode, vae.decode, lambda normalized: normalized)


def _from_diffusers(vae: Any, config: VAEConfig) -> Implementation:
    def denormalize(normalized: Tensor) -> Tensor:
        return LatentStatistics.of(config, normalized.dtype, normalized.device).denormalized(normalized)

    def encode(video: Tensor) -> Tensor:
        return vae.encode(video).latent_dist.mode()

    return Implementation(DIFFUSERS, vae, encode, lambda latents: vae.decode(latents).sample, denormalize)


def _from_openvino(vae: WanVAE, dtype: torch.dtype, threads: int) -> Implementation:
    """Compute in OpenVINO the steps of `export_steps`: the first frame, then one latent at a time with its caches.

    Weights and inputs are float32, which OpenVINO rounds to `dtype`. A shape is compiled at its first call.
    """
    # Imported by name because it is optional.
    openvino = importlib.import_module("openvino")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": threads,
    }

    @cache
    def requests(direction: Direction, shape: torch.Size) -> tuple[Any, ...]:
        """Return what computes a picture, or the first frame; and what computes further latents, twice."""
        scale = 1 if direction == "encode" else vae.config.spatial_compression
        with torch.inference_mode(False):  # exports are not made of tensors of inference mode
            if shape[2] == 1:
                picture = _Picture(StreamStep(vae, direction, first=True))
                programs = [torch.export.export(picture, (torch.zeros(shape),), strict=False)]
            else:
                programs = list(export_steps(vae, direction, height=shape[3] * scale, width=shape[4] * scale))
        steps = [openvino.compile_model(openvino.convert_model(program), "CPU", options) for program in programs]
        programs.clear()
        gc.collect()  # exported programs refer to themselves, and hold copies of the weights
        return tuple(step.create_infer_request() for step in (steps[0], *2 * steps[1:]))

    def run(direction: Direction, x: Tensor) -> Tensor:
        unit = vae.config.temporal_compression if direction == "encode" else 1
        first, *following = requests(direction, x.shape)
        starts = [0, *range(1, x.shape[2], unit)]
        results: list[Tensor] = []
        caches: list[Any] = []
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], x.shape[2]], strict=True)):
            # Two requests in turn, so that one reads the caches where the other left them.
            request = following[number % 2] if number else first
            chunk = x[:, :, start:stop].float().contiguous().numpy()
            outputs = request.infer([chunk, *caches], share_inputs=True, share_outputs=True)
            result, *caches = outputs.to_tuple()
            results.append(torch.from_numpy(result.copy()))
        return torch.cat(results, dim=2)

    def encode(video: Tensor) -> Tensor:
        return vae.denormalize(run("encode", video))

    return Implementation(OPENVINO, vae, encode, lambda latents: run("decode", latents), lambda normalized: normalized)


class _Picture(nn.Module):
    """The first step of a stream that has no other, so that nothing is cached."""

    def __init__(self, step: StreamStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.step(x)[0]
        return result


def _diffusers_class() -> Any:
    # Imported by name because it is optional.
    return importlib.import_module("diffusers").AutoencoderKLWan


def _upsample_in_input_dtype(vae: nn.Module) -> None:
    # diffusers rounds to float32 in its nearest-neighbor upsampling, which only copies values.
    for module in vae.modules():
        if isinstance(module, nn.Upsample):
            module.forward = MethodType(nn.Upsample.forward, module)  # type: ignore[method-assign]
