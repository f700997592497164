"""`wan-vae encode`: a clip to latents, or several."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from wan_vae.cli import options
from wan_vae.cli.cache import run_cache
from wan_vae.cli.common import Progress, default_output, encoder_dtype, load_model, model_loader, print_file_result
from wan_vae.errors import UserError


def encode(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="CLIP is a video, an animation, an image, or a folder of images. Of several, and of a folder with"
            " videos, all are encoded, as by `cache`. LATENTS, the last of two or more, is the file to write, such as"
            " clip.safetensors; for musubi the folder of the cache, and for several clips the folder of their files."
            " By default it is named after CLIP, in the current folder.",
            metavar="CLIP [LATENTS]",
            show_default=False,
        ),
    ],
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    checkpoint_values: options.CheckpointValuesOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    shards: options.ShardsOption = 1,
    threads: options.ThreadsOption = None,
    memory: options.MemoryOption = "auto",
    size: options.ClipSizeOption = None,
    fit: options.FitOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    length: options.LengthOption = None,
    format: Annotated[  # noqa: A002  # the option's name
        options.LatentsFormat | None,
        typer.Option(
            help="Program to write for; default by the extension: .latent is comfyui, .pt, .pth and .npy are tensor,"
            " and all else is wan-vae, the only one that keeps the clip's size, length and rate."
        ),
    ] = None,
    values: Annotated[
        options.Values | None,
        typer.Option(help="What --format tensor holds, default normalized; the others hold what is expected of them."),
    ] = None,
    posterior: options.PosteriorOption = False,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode a clip to latents, or several.

    By default LATENTS is a file that holds all that `decode` needs to restore the clip.
    """
    clips, latents = _clips_and_latents(paths, format)
    options.set_threads(threads)

    from wan_vae.dataset.sources import is_data_set

    chosen: dict[str, Any] = {
        **options.parse_selection(size, fit, frames, fps, length),
        "values": values,
        "posterior": posterior,
    }
    if len(clips) > 1 or is_data_set(clips[0]):
        if shards > 1:
            raise UserError(
                f"--shards is {shards}, but of several clips each is for one process; see `cache --devices`."
            )
        if overwrite:
            raise UserError(
                "--overwrite is for a single clip; of several, those are encoded again whose clip or options changed."
            )
        from wan_vae.dataset import CacheOptions

        wanted = CacheOptions(
            format="wan-vae" if format is None else format,
            dtype=encoder_dtype(device, dtype),
            **chosen,
        )
        load_one = partial(load_model, device=device, dtype=dtype, values=checkpoint_values)
        source = clips if len(clips) > 1 else clips[0]
        run_cache(source, latents, checkpoint, as_json=as_json, options=wanted, memory=memory, load=load_one)
        return
    with Progress("encoding") as progress:
        load = model_loader(device, dtype, shards, checkpoint_values)

        from wan_vae.files import encode_file

        result = encode_file(
            clips[0],
            latents,
            checkpoint,
            format=format,
            memory=memory,
            overwrite=overwrite,
            progress=progress,
            load=load,
            **chosen,
        )
    print_file_result(result, as_json=as_json, latents=result.shape)


def _clips_and_latents(paths: list[Path], form: options.LatentsFormat | None) -> tuple[list[Path], Path]:
    """Tell the clips from the output: the last of several paths, or else a default."""
    from wan_vae.dataset.sources import is_data_set
    from wan_vae.interchange.formats import LATENTS_SUFFIXES
    from wan_vae.io.file_names import CLIP_SUFFIXES

    if len(paths) > 1:
        *clips, latents = paths
        if latents.suffix.lower() in CLIP_SUFFIXES:
            raise UserError(
                f"The last of several paths is that of the latents, and {latents} ends like a clip; add"
                " a file that ends in .safetensors, or a folder for those of several clips."
            )
        several = len(clips) > 1 or is_data_set(clips[0])
        if several and latents.suffix.lower() in LATENTS_SUFFIXES and not latents.is_dir():
            raise UserError(
                f"The latents of several clips go to a folder, and {latents} ends like a file; name a folder."
            )
        return clips, latents
    if is_data_set(paths[0]) or form == "musubi":
        return paths, default_output(paths[0], "_latents")
    suffixes = {"comfyui": ".latent", "fastvideo": ".pt"}
    return paths, default_output(paths[0], ".safetensors" if form is None else suffixes.get(form, ".safetensors"))
