"""`wan-vae encode`: a clip to latents."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.budget import AUTO, encoded
from wan_vae.cli.common import Progress, peak_memory, print_result
from wan_vae.cli.distributed import Crew, follows
from wan_vae.io.atomic_output import check_output


def encode(
    clip: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    latents: Annotated[Path, typer.Argument(help="The latents file to write, such as clip.safetensors.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = AUTO,
    size: options.SizeOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode CLIP into LATENTS, a file that holds all that `decode` needs to give the clip back."""
    crew = None if shards == 1 else Crew(shards, device)
    if crew is not None and follows():
        crew.follow(checkpoint, device, dtype)
        return
    check_output(latents, overwrite=overwrite, inputs=(clip, Path(checkpoint)))

    import torch

    from wan_vae.cli.common import load_model
    from wan_vae.io.frames import FramesToTensors, to_host
    from wan_vae.io.latents_file import LatentsInfo, LatentsWriter

    with (
        options.open_selected(clip, size, frames, fps) as source,
        LatentsWriter(latents) as writer,
        torch.inference_mode(),
    ):
        model = load_model(checkpoint, device, dtype)
        vae, config = model.vae if crew is None else crew.lead(model.vae), model.vae.config
        progress = Progress(source.info.frames)
        together = vae.default_chunk_size(source.info.height, source.info.width) * config.temporal_compression
        fitted = FramesToTensors(progress.over(source.chunks(together)), config, vae.device)
        encoding = encoded(vae, fitted, source.info.height, source.info.width, memory)
        for (chunk,) in to_host(zip(encoding), vae.device):
            writer.write(chunk)
        shape = writer.finish(
            LatentsInfo(
                frames=fitted.frames,
                width=source.info.width,
                height=source.info.height,
                fps=source.info.fps,
                pixel_aspect=source.info.pixel_aspect,
                color=source.info.color,
                config=config,
                checkpoint=model.checkpoint.digest(),
            )
        )
    if crew is not None:
        crew.leave()
    result = {
        "output": latents,
        "latents": shape,
        "frames": fitted.frames,
        "size": f"{source.info.width}x{source.info.height}",
        "fps": source.info.fps,
        "frames_per_second": progress.frames_per_second(),
        "peak_memory": peak_memory(vae.device),
    }
    print_result(result, as_json=as_json)
