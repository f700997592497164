"""`wan-vae encode`: a clip to latents."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, model_loader, print_file_result


def encode(
    clip: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    latents: Annotated[Path, typer.Argument(help="The latents file to write, such as clip.safetensors.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = options.AUTO,
    size: options.SizeOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode CLIP into LATENTS, a file that holds all that `decode` needs to restore the clip."""
    pixels, span, rate = options.parse_size(size), options.parse_frames(frames), options.parse_fps(fps)
    load = model_loader(device, dtype, shards)

    from wan_vae.files import encode_file

    with Progress() as progress:
        result = encode_file(
            clip,
            latents,
            checkpoint,
            size=pixels,
            frames=span,
            fps=rate,
            memory=memory,
            overwrite=overwrite,
            progress=progress,
            load=load,
        )
    print_file_result(result, as_json=as_json, latents=result.shape)
