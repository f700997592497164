"""What a page says about a clip, the options it was read with, the software, and the model."""

import platform
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from wan_vae.inference.budget import format_bytes, peak_memory
from wan_vae.io import ClipInfo

if TYPE_CHECKING:
    from wan_vae.sharding import ShardedVAE
    from wan_vae.tiny import TinyVAE
    from wan_vae.vae import WanVAE

_SEPARATORS = {"size": "x", "frames": ":"}  # of the two parts of a value on the command line


def clip_facts(path: Path, info: ClipInfo, options: Mapping[str, object]) -> dict[str, object]:
    """Return what is known of a source, options that are not at their defaults, and versions, by name."""
    given = {f"--{name}": _as_typed(name, value) for name, value in options.items()}
    return {
        "source": path,
        "size": f"{info.width} x {info.height}",
        "frames": info.frames,
        "frames a second": info.fps,
        "pixel aspect": info.pixel_aspect,
        "codec": f"{info.codec} in {info.container}",
        "bits a channel": info.bit_depth,
        **{name: text for name, text in given.items() if text},
        # Imported late, since it imports all modules, this one too.
        "wan-vae": import_module("wan_vae").__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def model_facts(
    model: "WanVAE | TinyVAE | ShardedVAE", checkpoint: str, frames: int, seconds: float
) -> dict[str, object]:
    """Return what is known of a model and of a run that took so long, by name."""
    config, peak = model.config, peak_memory()
    dtypes = [str(getattr(model, name, "")).removeprefix("torch.") for name in ("dtype", "decoder_dtype")]
    if model.device.type == "cuda":
        on = torch.cuda.get_device_name(model.device)
    else:
        on = f"{model.device.type}, threads: {torch.get_num_threads()}"
    return {
        "checkpoint": checkpoint,
        "digest": f"SHA-256 {model.digest()}",
        "latents": f"{config.latent_channels} channels",
        "compression": f"{config.spatial_compression} x {config.spatial_compression} pixels,"
        f" {config.temporal_compression} frames",
        **({"computed in": " and ".join(dict.fromkeys(dtypes))} if all(dtypes) else {}),
        "device": on,
        "speed": f"{frames / seconds:.2f} frames/s, outputs included",
        "peak memory of the process by then": "unknown" if peak is None else format_bytes(peak),
    }


def _as_typed(name: str, value: object) -> str:
    if value in (None, False, "auto", (None, None)):
        return ""
    if value is True:
        return "yes"
    if isinstance(value, tuple):
        return _SEPARATORS[name].join("" if part is None else str(part) for part in value)
    return str(value)
