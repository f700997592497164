"""`wan-vae decode`: latents to a clip."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, model_loader, print_file_result


def decode(
    latents: Annotated[Path, typer.Argument(help="A latents file that `encode` wrote.")],
    clip: Annotated[Path, typer.Argument(help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = options.AUTO,
    lossless: options.LosslessOption = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Decode LATENTS into CLIP, of the size, length and rate that the encoded clip had."""
    load = model_loader(device, dtype, shards)

    from wan_vae.files import decode_file

    with Progress() as progress:
        result = decode_file(
            latents,
            clip,
            checkpoint,
            memory=memory,
            lossless=lossless,
            overwrite=overwrite,
            progress=progress,
            load=load,
        )
    print_file_result(result, as_json=as_json)
