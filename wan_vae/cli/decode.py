"""`wan-vae decode`: latents to a clip."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.budget import AUTO, decoded
from wan_vae.cli.common import Progress, peak_memory, print_result
from wan_vae.cli.distributed import Crew, follows
from wan_vae.errors import LatentsError
from wan_vae.io.atomic_output import check_output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wan_vae.config import VAEConfig


def decode(
    latents: Annotated[Path, typer.Argument(help="A latents file that `encode` wrote.")],
    clip: Annotated[Path, typer.Argument(help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder.")],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Precision.auto,
    shards: options.ShardsOption = 1,
    memory: options.MemoryOption = AUTO,
    lossless: options.LosslessOption = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Decode LATENTS into CLIP, of the size, length and rate that the encoded clip had."""
    crew = None if shards == 1 else Crew(shards, device)
    if crew is not None and follows():
        crew.follow(checkpoint, device, dtype)
        return
    check_output(clip, overwrite=overwrite, inputs=(latents, Path(checkpoint)), may_be_folder=not clip.suffix)

    import torch

    from wan_vae.cli.common import load_model
    from wan_vae.io import create_clip
    from wan_vae.io.frames import tensors_to_frames, to_device
    from wan_vae.io.latents_file import LatentsFile

    source = LatentsFile(latents)
    info = source.info
    model = load_model(checkpoint, device, dtype)
    config = model.vae.config
    _check_same_latent_space(info.config, config, f"{latents} cannot be decoded by {checkpoint}")
    if model.checkpoint.digest() != info.checkpoint:
        logging.getLogger("wan_vae").warning(f"{latents} was encoded by other weights than those of {checkpoint}.")
    vae = model.vae if crew is None else crew.lead(model.vae)
    width, height = info.width * config.output_upscale, info.height * config.output_upscale
    writer = create_clip(
        clip,
        width=width,
        height=height,
        fps=info.fps,
        color=info.color,
        pixel_aspect=info.pixel_aspect,
        lossless=lossless,
    )
    progress = Progress(info.frames)

    def true_frames() -> Iterator["NDArray[np.uint8]"]:
        left = info.frames
        together = vae.default_chunk_size(info.height, info.width)
        chunks = to_device(source.chunks(together), vae.device)
        videos = decoded(vae, chunks, info.height, info.width, memory)
        for frames in tensors_to_frames(videos, width, height, vae.device):
            yield frames[:left]
            left -= len(frames)

    with writer, torch.inference_mode():
        for frames in progress.over(true_frames()):
            writer.write(frames)
    if crew is not None:
        crew.leave()
    result = {
        "output": clip,
        "frames": info.frames,
        "size": f"{width}x{height}",
        "fps": info.fps,
        "frames_per_second": progress.frames_per_second(),
        "peak_memory": peak_memory(vae.device),
    }
    print_result(result, as_json=as_json)


def _check_same_latent_space(encoded: "VAEConfig", decoding: "VAEConfig", refusal: str) -> None:
    for name in ("latent_channels", "spatial_compression", "temporal_compression", "latent_mean", "latent_std"):
        if getattr(encoded, name) != getattr(decoding, name):
            raise LatentsError(
                f"{refusal}, whose {name.replace('_', ' ')} is {getattr(decoding, name)} and not"
                f" {getattr(encoded, name)}; use the checkpoint that encoded it."
            )
