"""`wan-vae decode`: latents to a clip."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, model_loader, print_file_result


def decode(
    latents: Annotated[Path, typer.Argument(help="Latents that `encode` wrote, or another program.")],
    clip: Annotated[Path, typer.Argument(help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = options.AUTO,
    lossless: options.LosslessOption = False,
    fps: Annotated[
        str | None,
        typer.Option(
            help="Rate of the clip, such as 30000/1001; default that of LATENTS, or 16 (Wan2.2: 24) if it has none.",
            metavar="RATE",
        ),
    ] = None,
    values: Annotated[
        options.Values | None,
        typer.Option(help="What latents of another program are, if it does not tell; default by their statistics."),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Decode LATENTS into CLIP, of the size, length and rate that the encoded clip had, where LATENTS tells."""
    rate = options.parse_fps(fps)
    load = model_loader(device, dtype, shards)

    from wan_vae.files import decode_file

    with Progress() as progress:
        result = decode_file(
            latents,
            clip,
            checkpoint,
            fps=rate,
            values=None if values is None else values.value,
            memory=memory,
            lossless=lossless,
            overwrite=overwrite,
            progress=progress,
            load=load,
        )
    print_file_result(result, as_json=as_json)
