"""`wan-vae info`: what a file is."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wan_vae.cli import options
from wan_vae.cli.report import print_result


def info(
    file: Annotated[Path, typer.Argument(help="A checkpoint (or its name), a latents file or a clip.")],
    as_json: options.JsonOption = False,
) -> None:
    """Say what FILE is: a checkpoint, latents or a clip."""
    print_result(describe(file), as_json=as_json)


def describe(path: Path) -> dict[str, Any]:
    """Return what a file is and holds, told from its content."""
    if path.is_dir():
        holds_model = any((place / "config.json").is_file() for place in (path, path / "vae"))
        return describe_checkpoint(path) if holds_model else describe_clip(path)
    if not path.exists():
        return describe_checkpoint(path)

    from wan_vae.checkpoints.tensors import holds_tensors
    from wan_vae.latents_file import latents_metadata

    if not holds_tensors(path):
        return describe_clip(path)
    return describe_checkpoint(path) if latents_metadata(path) is None else describe_latents(path)


def describe_clip(path: Path) -> dict[str, Any]:
    """Return what is known of a clip."""
    from wan_vae.video import open_clip

    with open_clip(path) as clip:
        known = asdict(clip.info)
        color = known.pop("color")
        return {"file": path, "kind": "clip"} | known | {f"color_{name}": value for name, value in color.items()}


def describe_latents(path: Path) -> dict[str, Any]:
    """Return what is known of latents and of the clip that they stand for."""
    from wan_vae.latents_file import LatentsFile

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
    from wan_vae.checkpoints import read_checkpoint, resolve_checkpoint

    checkpoint = read_checkpoint(resolve_checkpoint(path))
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
