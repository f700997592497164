"""`wan-vae info`: what a file holds, and how clips would pass through a model."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wan_vae.cli import options
from wan_vae.cli.common import print_result
from wan_vae.errors import UserError

if TYPE_CHECKING:
    from wan_vae.interchange import ForeignLatents


def info(
    file: Annotated[
        str, typer.Argument(help="A checkpoint (or its name), a latents file or a clip.", metavar="FILE")
    ] = options.DEFAULT_CHECKPOINT,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Print how clips of this size would pass through the network of FILE, a checkpoint, and the memory"
            " needed.",
            metavar="HEIGHTxWIDTHxFRAMES",
        ),
    ] = None,
    memory: options.MemoryOption = options.AUTO,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    as_json: options.JsonOption = False,
) -> None:
    """Describe a checkpoint, latents or a clip, or plan a clip's encoding."""
    print_result(describe(file) if plan is None else plan_calls(file, plan, memory, device, dtype), as_json=as_json)


def plan_calls(
    checkpoint: str, size: str, memory: str, device: options.Device, dtype: options.Precision
) -> dict[str, Any]:
    """Return how clips of a size would be encoded and decoded, as streams and as a whole."""
    match = re.fullmatch(r"(\d{1,9})x(\d{1,9})x(\d{1,9})", size)
    if match is None:
        raise UserError(f"--plan is {size!r}; write it as HEIGHTxWIDTHxFRAMES, such as 1080x1920x81.")
    height, width, frames = (int(number) for number in match.groups())

    import torch

    from wan_vae.checkpoints import load_checkpoint
    from wan_vae.config import load_config, preset_names
    from wan_vae.vae import WanVAE
    from wan_vae.validation import choose_dtypes

    # The weights are not needed; a preset's are not even fetched.
    is_preset = checkpoint in preset_names()
    config = load_config(checkpoint) if is_preset else load_checkpoint(checkpoint).config
    on = options.torch_device(device)
    with torch.device("meta"):
        vae = WanVAE(config).eval().requires_grad_(False)
    vae.set_dtypes(**choose_dtypes(dtype.value, on)._asdict())
    side, unit = config.spatial_compression, config.temporal_compression
    height, width = (-(-pixels // side) * side for pixels in (height, width))
    padded = {"frames": 1 + -(-max(0, frames - 1) // unit) * unit, "height": height, "width": width}
    result: dict[str, Any] = {"file": checkpoint, **padded}
    directions: tuple[Literal["encode", "decode"], ...] = ("encode", "decode")
    for direction in directions:
        for name, streaming in ((f"{direction}_clip", False), (f"{direction}_stream", True)):
            try:
                plan = vae.plan(direction, **padded, memory=memory, streaming=streaming, device=on)
            except UserError as error:
                result[name] = str(error)
            else:
                overhead = round(plan.overhead, 4)
                result |= {name: str(plan), f"{name}_peak": plan.peak, f"{name}_overhead": overhead}
    return result


def describe(file: str) -> dict[str, Any]:
    """Return what a file is and holds, recognized by its content."""
    from wan_vae.checkpoints import load_checkpoint, resolve_checkpoint
    from wan_vae.checkpoints.sources import holds_checkpoint
    from wan_vae.checkpoints.tensor_files import tensor_format
    from wan_vae.checkpoints.tiny import holds_tiny
    from wan_vae.config import preset_names
    from wan_vae.interchange.reader import find_latents
    from wan_vae.io import open_clip
    from wan_vae.io.latents_file import LatentsFile, latents_metadata

    path, is_name = Path(file), file in preset_names()
    foreign = None if is_name else find_latents(path)
    if foreign is not None:
        is_clip = False
    elif path.is_dir():
        is_clip = not is_name and not holds_checkpoint(path)
    else:
        is_clip = not is_name and path.exists() and (not path.is_file() or tensor_format(path) is None)
    if is_clip:
        with open_clip(path) as clip:
            values = asdict(clip.info)
        color = {f"color_{name}": value for name, value in values.pop("color").items()}
        return {"file": path, "kind": "clip", **values, **color}
    if not is_name and path.is_file() and latents_metadata(path) is not None:
        latents = LatentsFile(path)
        stored = latents.info
        return {
            "file": path,
            "kind": "latents",
            "shape": latents.shape,
            "dtype": latents.dtype,
            "logvar": latents.has_logvar,
            **{name: getattr(stored, name) for name in ("frames", "width", "height", "fps", "pixel_aspect")},
            "color": f"{stored.color.matrix} {stored.color.range_name}",
            "checkpoint": stored.checkpoint,
        }
    if foreign is not None:
        return describe_foreign(foreign, path)
    origin = resolve_checkpoint(file)
    if holds_tiny(origin):
        return describe_tiny(origin)
    checkpoint = load_checkpoint(origin)
    config, weights = checkpoint.config, checkpoint.weights.values()
    return {
        "file": checkpoint.path,
        "kind": "checkpoint",
        "layout": checkpoint.layout,
        "parameters": sum(weight.numel() for weight in weights if weight.is_floating_point()),
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}),
        **{name: getattr(config, name) for name in ("latent_channels", "spatial_compression", "temporal_compression")},
        **{name: value for name, value in config.to_dict().items() if not name.startswith("latent_")},
        "digest": checkpoint.digest(),
    }


def describe_tiny(path: Path) -> dict[str, Any]:
    """Return what a tiny autoencoder is, and whose latents it takes."""
    from wan_vae.checkpoints import weights_digest
    from wan_vae.checkpoints.tiny import load_tiny, raw_by_name
    from wan_vae.config import MODEL_OF_CHANNELS

    raw = raw_by_name(path)
    config, weights = load_tiny(path, raw=raw is True)
    return {
        "file": path,
        "kind": "checkpoint",
        "model": "tiny autoencoder",
        "layout": "taehv",
        "decoder": config.decoder,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()}),
        "latent_channels": config.latent_channels,
        "latents_of": MODEL_OF_CHANNELS[config.latent_channels],
        "values": "unknown" if raw is None else "raw" if raw else "normalized",
        "values_are": "not told; normalized is taken" if raw is None else "known by the file's name",
        "digest": weights_digest(weights),
    }


def describe_foreign(latents: "ForeignLatents", path: Path) -> dict[str, Any]:
    """Return whose latents a file holds, and what tells whether they are raw or normalized."""
    from wan_vae.config import MODEL_OF_CHANNELS, load_config

    values, said_by = latents.values, "named in the file" if latents.named else "known by the format"
    preset = MODEL_OF_CHANNELS.get(latents.shape[1])
    if values is None and preset is not None:
        guess = latents.guess(load_config(preset))
        values, said_by = guess.values, f"guessed by the statistics of {preset}, {guess.margin:.2f} nats a value"
    return {
        "file": path,
        "kind": "latents",
        "format": latents.form.title,
        "shape": latents.shape,
        "dtype": latents.dtype,
        "values": values or "unknown",
        "values_are": said_by if values is not None else None,
    }
