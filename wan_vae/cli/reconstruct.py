"""`wan-vae reconstruct`: a clip to latents and back, to see and to measure the losses."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, default_output, model_loader, print_file_result


def reconstruct(
    clip: Annotated[
        Path, typer.Argument(help="A video, an animation, an image, or a folder of images.", metavar="CLIP")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            help="The clip to write: mp4, mkv, webm, mov, avi, gif, webp, or a folder; default an mp4 that is named"
            " after CLIP, in the current folder; for an image a png.",
            metavar="OUT",
        ),
    ] = None,
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
    lossless: options.LosslessOption = False,
    side_by_side: Annotated[
        Path | None, typer.Option(help="Also write a clip with the source on the left and OUT on the right.")
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Also write a PNG of a few frames: source, reconstruction, error.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Also write a page for the browser: source and reconstruction under a slider, errors, plots, latents."
        ),
    ] = None,
    lpips: options.LpipsOption = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Encode a clip, decode it again, and print how close they are.

    PSNR and SSIM compare the decoded frames with the source's, before OUT is compressed. Audio is carried over where
    OUT's format can hold it.
    """
    selection = options.parse_selection(size, fit, frames, fps, length)
    options.set_threads(threads)
    if out is None:
        from wan_vae.io.file_names import IMAGE_SUFFIXES

        is_image = clip.suffix.lower() in IMAGE_SUFFIXES - {".webp"}  # which may be an animation
        out = default_output(clip, "_reconstructed.png" if is_image else "_reconstructed.mp4")
    with Progress("reconstructing") as progress:
        load = model_loader(device, dtype, shards, checkpoint_values)

        from wan_vae.reconstruction import reconstruct_file

        result = reconstruct_file(
            clip,
            out,
            checkpoint,
            side_by_side=side_by_side,
            contact_sheet=contact_sheet,
            report=report,
            lpips=lpips,
            lossless=lossless,
            memory=memory,
            overwrite=overwrite,
            progress=progress,
            load=load,
            **selection,
        )
    score = {} if result.score is None else result.score.to_dict()
    more = {"side_by_side": side_by_side, "contact_sheet": contact_sheet, "report": report}
    measured = {name: score.get(name) for name in ("psnr", "ssim", "lpips")}
    print_file_result(result, as_json=as_json, **more, **measured)
