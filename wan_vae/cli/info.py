"""`wan-vae info`: what a file is."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wan_vae.cli import options
from wan_vae.cli.budget import AUTO
from wan_vae.cli.common import print_result
from wan_vae.errors import UserError


def info(
    file: Annotated[Path, typer.Argument(help="A checkpoint (or its name), a latents file or a clip.")] = Path(
        options.DEFAULT_CHECKPOINT
    ),
    plan: Annotated[
        str | None,
        typer.Option(
            help="Say how clips of this size would go through the network of FILE, a checkpoint, and what memory that"
            " would take.",
            metavar="HEIGHTxWIDTHxFRAMES",
        ),
    ] = None,
    memory: options.MemoryOption = AUTO,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    as_json: options.JsonOption = False,
) -> None:
    """Say what FILE is: a checkpoint, latents or a clip; default the checkpoint in the package."""
    print_result(describe(file) if plan is None else make_plan(file, plan, memory, device, dtype), as_json=as_json)


def make_plan(
    checkpoint: Path, size: str, memory: str, device: options.Device, dtype: options.Precision
) -> dict[str, Any]:
    """Return how clips would go through a network, by call."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", size)
    if match is None:
        raise UserError(f"--plan is {size!r}; write it as HEIGHTxWIDTHxFRAMES, such as 1080x1920x81.")
    height, width, frames = (int(number) for number in match.groups())

    import torch

    from wan_vae.checkpoints import load_checkpoint
    from wan_vae.config import load_config, preset_names
    from wan_vae.vae import WanVAE

    # Weights are not needed, and of a preset not even fetched.
    shipped = str(checkpoint) in preset_names()
    config = load_config(checkpoint) if shipped else load_checkpoint(checkpoint).config
    on = options.torch_device(device)
    dtypes = options.torch_dtypes(dtype, on)
    with torch.device("meta"):
        vae = WanVAE(config).eval().requires_grad_(False)
    vae.set_dtypes(encoder=dtypes.encoder, decoder=dtypes.decoder)
    side, unit = vae.config.spatial_compression, vae.config.temporal_compression
    # Clips are padded to fit.
    fitting = {
        "frames": 1 + -(-max(0, frames - 1) // unit) * unit,
        "height": -(-height // side) * side,
        "width": -(-width // side) * side,
    }
    result: dict[str, Any] = {"file": checkpoint, **fitting}
    with torch.inference_mode():
        for call in ("encode", "decode"):
            for streaming in (False, True):
                name = f"{call}_{'stream' if streaming else 'clip'}"
                try:
                    plan = vae.plan(call, **fitting, memory=memory, streaming=streaming, device=on)
                except UserError as error:
                    result[name] = str(error)
                    continue
                result[name] = str(plan)
                result[f"{name}_peak"] = plan.peak
                result[f"{name}_overhead"] = round(plan.overhead, 4)
    return result


def describe(path: Path) -> dict[str, Any]:
    """Return what a file is and holds, told from its content."""
    if path.is_dir():
        holds_model = any((place / "config.json").is_file() for place in (path, path / "vae"))
        return describe_checkpoint(path) if holds_model else describe_clip(path)
    if not path.exists():
        return describe_checkpoint(path)

    from wan_vae.checkpoints.files import holds_tensors
    from wan_vae.io.latents_file import latents_metadata

    if not holds_tensors(path):
        return describe_clip(path)
    return describe_checkpoint(path) if latents_metadata(path) is None else describe_latents(path)


def describe_clip(path: Path) -> dict[str, Any]:
    """Return what is known of a clip."""
    from wan_vae.io import open_clip

    with open_clip(path) as clip:
        known = asdict(clip.info)
        color = known.pop("color")
        return {"file": path, "kind": "clip"} | known | {f"color_{name}": value for name, value in color.items()}


def describe_latents(path: Path) -> dict[str, Any]:
    """Return what is known of latents and of the clip that they stand for."""
    from wan_vae.io.latents_file import LatentsFile

    latents = LatentsFile(path)
    known = latents.info
    return {
        "file": path,
        "kind": "latents",
        "shape": latents.shape,
        "dtype": latents.dtype,
        "frames": known.frames,
        "width": known.width,
        "height": known.height,
        "fps": known.fps,
        "pixel_aspect": known.pixel_aspect,
        "color": f"{known.color.matrix} {known.color.range_name}",
        "checkpoint": known.checkpoint,
    }


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Return what is known of a checkpoint and of the network that it is for."""
    from wan_vae.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    weights = checkpoint.weights.values()
    architecture = {name: value for name, value in config.to_dict().items() if not name.startswith("latent_")}
    return {
        "file": checkpoint.path,
        "kind": "checkpoint",
        "layout": checkpoint.layout,
        "parameters": sum(weight.numel() for weight in weights if weight.is_floating_point()),
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}),
        "latent_channels": config.latent_channels,
        "spatial_compression": config.spatial_compression,
        "temporal_compression": config.temporal_compression,
        **architecture,
        "digest": checkpoint.digest(),
    }
