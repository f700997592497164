"""`wan-vae encode`: a clip to latents."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, model_loader, print_file_result


def encode(
    clip: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    latents: Annotated[
        Path,
        typer.Argument(help="The latents file to write, such as clip.safetensors; for musubi the folder of the cache."),
    ],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    checkpoint_values: options.CheckpointValuesOption = None,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = options.AUTO,
    size: options.ClipSizeOption = None,
    fit: options.FitOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    length: options.LengthOption = None,
    format: Annotated[  # noqa: A002  # the option's name
        options.LatentsFormat | None,
        typer.Option(
            help="The program to write for; default by the ending: .latent is comfyui, .pt, .pth and .npy are tensor,"
            " and all else is wan-vae, the only one that keeps the clip's size, length and rate."
        ),
    ] = None,
    values: Annotated[
        options.Values | None,
        typer.Option(help="What --format tensor holds, default normalized; the others hold what is expected of them."),
    ] = None,
    posterior: Annotated[
        bool,
        typer.Option(
            "--posterior", help="Also store the log-variance of the latents, to sample from; only in a wan-vae file."
        ),
    ] = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode CLIP into LATENTS, by default a file that holds all that `decode` needs to restore the clip."""
    pixels, span, rate = options.parse_clip_size(size), options.parse_frames(frames), options.parse_fps(fps)
    load = model_loader(device, dtype, shards, checkpoint_values)

    from wan_vae.files import encode_file

    with Progress() as progress:
        result = encode_file(
            clip,
            latents,
            checkpoint,
            size=pixels,
            fit=None if fit is None else fit.value,
            frames=span,
            fps=rate,
            length=length,
            format=None if format is None else format.value,
            values=None if values is None else values.value,
            posterior=posterior,
            memory=memory,
            overwrite=overwrite,
            progress=progress,
            load=load,
        )
    print_file_result(result, as_json=as_json, latents=result.shape)
