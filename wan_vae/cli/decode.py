"""`wan-vae decode`: latents to a clip."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, default_output, load_model, model_loader, print_file_result
from wan_vae.errors import UserError

if TYPE_CHECKING:
    from wan_vae.alpha_pair import AlphaPair
    from wan_vae.files import FileResult


def decode(
    latents: Annotated[
        Path,
        typer.Argument(
            help="Latents that `encode` wrote, or another program; or, with --index, a cache.", metavar="LATENTS"
        ),
    ],
    clip: Annotated[
        Path | None,
        typer.Argument(
            help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder; default an mp4 that is named"
            " after LATENTS, in the current folder.",
            metavar="CLIP",
        ),
    ] = None,
    checkpoint: options.CheckpointOption = options.DEFAULT_CHECKPOINT,
    checkpoint_values: options.CheckpointValuesOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    shards: options.ShardsOption = 1,
    threads: options.ThreadsOption = None,
    memory: options.MemoryOption = "auto",
    lossless: options.LosslessOption = False,
    fps: Annotated[
        str | None,
        typer.Option(
            help="Rate of the clip, such as 30000/1001; default that of LATENTS, or 16 (Wan2.2: 24) if it has none.",
            metavar="RATE",
        ),
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(min=0, help="Of a cache: the output of this number, from 0 on, in the order of the clips' names."),
    ] = None,
    values: Annotated[
        options.Values | None,
        typer.Option(help="What latents of another program are, if it does not tell; default by their statistics."),
    ] = None,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview",
            help="Show the latents by a linear map to colors, at once and without a checkpoint: blurred, but one sees"
            " what they are of.",
        ),
    ] = False,
    alpha_checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Wan-Alpha's second model, which decodes the same latents to alpha; --checkpoint is that of colors.",
            metavar="PATH",
        ),
    ] = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Decode latents to a clip.

    It has the size, length and rate of the clip that was encoded, where LATENTS tells.
    """
    rate = options.parse_fps(fps)
    options.set_threads(threads)
    if index is not None:
        from wan_vae.dataset.manifest import output_of
        from wan_vae.dataset.storage import Outputs

        outputs = Outputs(latents)
        latents = outputs.path(output_of(latents, index))
    elif latents.is_dir():
        raise UserError(
            f"{latents} is a folder; name a file in it or, if it is a cache, the number of an output by --index."
        )
    if shards > 1 and (preview or alpha_checkpoint is not None):
        other = "--preview" if preview else "--alpha-checkpoint"
        raise UserError(f"--shards is {shards}, but {other} is the work of one process; leave one of them out.")
    of_models = {
        "--alpha-checkpoint": alpha_checkpoint is not None,
        "--checkpoint": checkpoint != options.DEFAULT_CHECKPOINT,
        "--checkpoint-values": checkpoint_values is not None,
        "--device": device != "auto",
        "--dtype": dtype != "auto",
        "--memory": memory != "auto",
    }
    given = [name for name, is_given in of_models.items() if is_given]
    if preview and given:
        raise UserError(f"--preview needs no model, so {given[0]} has no use; leave one of them out.")
    if alpha_checkpoint is not None and checkpoint_values is not None:
        raise UserError("--checkpoint-values is for tiny autoencoders, not for --alpha-checkpoint; leave one out.")
    clip = default_output(latents, "_decoded.mp4") if clip is None else clip
    write: Callable[..., FileResult]
    with Progress("decoding") as progress:
        if preview:
            from wan_vae.files import preview_file

            write = preview_file
        else:
            load: Callable[[str | Path], Any] = model_loader(device, dtype, shards, checkpoint_values)
            if alpha_checkpoint is not None:
                load = partial(_load_pair, alpha_checkpoint, device=device, dtype=dtype)

            from wan_vae.files import decode_file

            write = partial(decode_file, vae=checkpoint, memory=memory, load=load)
        result = write(
            latents,
            clip,
            fps=rate,
            values=values,
            lossless=lossless,
            overwrite=overwrite,
            progress=progress,
        )
    print_file_result(result, as_json=as_json)


def _load_pair(alpha: str, color: str | Path, *, device: options.Device, dtype: options.Precision) -> "AlphaPair":
    from wan_vae.alpha_pair import AlphaPair

    first, second = (load_model(checkpoint, device=device, dtype=dtype) for checkpoint in (color, alpha))
    return AlphaPair(first, second)  # type: ignore[arg-type]  # it refuses tiny models
