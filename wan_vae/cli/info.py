"""`wan-vae info`: what a file holds, and how clips would pass through a model."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wan_vae.cli import options
from wan_vae.cli.common import format_memory, print_result
from wan_vae.errors import ClipError, UserError

if TYPE_CHECKING:
    from wan_vae.dataset.manifest import Manifest
    from wan_vae.inference.planner import Plan
    from wan_vae.interchange import ForeignLatents


def info(
    file: Annotated[
        str, typer.Argument(help="A checkpoint (or its name), a latents file, a cache or a clip.", metavar="FILE")
    ] = options.DEFAULT_CHECKPOINT,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Print how a clip of this size, or this clip, would pass through the network of FILE, a checkpoint,"
            " and the memory that it takes.",
            metavar="WIDTHxHEIGHTxFRAMES|CLIP",
        ),
    ] = None,
    memory: options.MemoryOption = "auto",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Describe a checkpoint, latents, cache or clip, or plan a run."""
    from wan_vae.cli.messages import Bar

    if plan is None:
        for name, value in (("memory", memory), ("device", device), ("dtype", dtype)):
            if value != "auto":
                raise UserError(f"--{name} is {value}, which is for --plan alone.")
        with Bar(unit="file"):
            found = describe(file)
        print_result(found, as_json=as_json)
        return
    with Bar(unit="plan"):
        size, plans = plan_calls(file, plan, memory, device, dtype)
    result = {"file": file, **size}
    if not as_json:
        as_text = {"file": file, "size": f"{size['width']}x{size['height']}", "frames": size["frames"]}
        print_result(as_text, as_json=False)
        _print_plans(plans)
        return
    for name, chosen in plans.items():
        result[name] = str(chosen)
        if not isinstance(chosen, UserError):
            result |= {f"{name}_peak": chosen.peak, f"{name}_overhead": round(chosen.overhead, 4)}
    print_result(result, as_json=True)


def plan_calls(
    checkpoint: str, clip: str, memory: str, device: options.Device, dtype: options.Precision
) -> tuple[dict[str, int], "dict[str, Plan | UserError]"]:
    """Return the padded size of a clip, and how it would be encoded and decoded, as a stream and as a whole."""
    width, height, frames = _clip_size(clip)

    import torch

    from wan_vae.checkpoints import load_checkpoint
    from wan_vae.checkpoints.tensor_files import tensor_format
    from wan_vae.config import load_config, preset_names
    from wan_vae.inference.planner import BudgetError
    from wan_vae.vae import WanVAE
    from wan_vae.validation import choose_dtypes

    # The weights are not needed; a preset's are not even fetched.
    is_preset = checkpoint in preset_names()
    if not is_preset and Path(checkpoint).is_file() and tensor_format(Path(checkpoint)) is None:
        raise UserError(
            f"{checkpoint} is no checkpoint, and plans are for one; for a clip's way through nano, write: wan-vae info"
            f" nano --plan {checkpoint}."
        )
    config = load_config(checkpoint) if is_preset else load_checkpoint(checkpoint).config
    on = options.torch_device(device)
    with torch.device("meta"):
        vae = WanVAE(config).eval().requires_grad_(False)
    vae.set_dtypes(**choose_dtypes(dtype, on)._asdict())
    side, unit = config.spatial_compression, config.temporal_compression
    height, width = (-(-pixels // side) * side for pixels in (height, width))
    padded = {"frames": 1 + -(-max(0, frames - 1) // unit) * unit, "height": height, "width": width}
    plans: dict[str, Plan | UserError] = {}
    directions: tuple[Literal["encode", "decode"], ...] = ("encode", "decode")
    for direction in directions:
        for name, streaming in ((f"{direction}_clip", False), (f"{direction}_stream", True)):
            try:
                plans[name] = vae.plan(direction, **padded, memory=memory, streaming=streaming, device=on)
            except BudgetError as error:  # which a smaller picture or the other way may not have
                plans[name] = error
    return padded, plans


def _clip_size(text: str) -> tuple[int, int, int]:
    """Return width, height and frames of "1920x1080x81", or of a clip."""
    match = re.fullmatch("x".join([r"([1-9]\d{0,8})"] * 3), text)
    if match is not None:
        width, height, frames = map(int, match.groups())
        return width, height, frames
    if not Path(text).exists():
        raise UserError(
            f"--plan is {text!r}; write it as WIDTHxHEIGHTxFRAMES, such as 1920x1080x81, or name a clip that exists."
        )

    from wan_vae.io import open_clip

    with open_clip(Path(text)) as clip:
        return clip.info.width, clip.info.height, clip.info.frames


def _print_plans(plans: "dict[str, Plan | UserError]") -> None:
    rows = [("", "memory", "latents a pass", "more operations", "pictures")]
    for name, plan in plans.items():
        title = f"{name.replace('_', ', ')}"
        if isinstance(plan, UserError):
            rows.append((title, "-", "-", "-", str(plan)))
            continue
        overhead = f"{100 * plan.overhead:.1f} %" if plan.overhead else "none"
        rows.append((title, format_memory(plan.peak), str(plan.latents_per_pass), overhead, plan.cut))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for title, *figures, pictures in rows:
        cells = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True)]
        typer.echo("  ".join([f"{title:<{widths[0]}}", *cells, pictures]))


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
    if not is_name and (manifest := find_cache(path)) is not None:
        return describe_cache(manifest)
    foreign = None if is_name else find_latents(path)
    if foreign is not None:
        is_clip = False
    elif path.is_dir():
        is_clip = not is_name and not holds_checkpoint(path)
    else:
        is_clip = not is_name and path.exists() and (not path.is_file() or tensor_format(path) is None)
    if is_clip:
        try:
            with open_clip(path) as clip:
                values = asdict(clip.info)
        except ClipError as error:
            raise ClipError(f"{path} is no checkpoint, no latents file, and no clip either: {error}") from error
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


def find_cache(folder: Path) -> "Manifest | None":
    """Return the manifest of a folder that `cache` wrote outputs to, None for anything else."""
    from wan_vae.dataset.manifest import Manifest

    if not folder.is_dir():
        return None
    try:
        return Manifest.of_cache(folder)
    except UserError:
        return None


def describe_cache(manifest: "Manifest") -> dict[str, Any]:
    """Return what a cache holds, by its manifest; the outputs themselves are not read, which is for `--verify`."""
    records = manifest.records
    return {
        "file": manifest.folder,
        "kind": "cache",
        "clips": len(manifest.sources),
        "outputs": len(records),
        "frames": sum(record.frames for record in records),
        "duration": sum(record.duration for record in records),
        "bytes": sum(record.bytes for record in records),
        "extensions": sorted({Path(record.output).suffix for record in records}),
        "captions": sum(record.caption is not None for record in records),
        "failed": len(manifest.failures),
        "checkpoint_digests": sorted({record.key.checkpoint for record in records}),
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
