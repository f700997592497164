"""`wan-vae report`: a page that shows a clip beside its reconstruction."""

from pathlib import Path
from typing import Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, print_file_result


def report(
    source: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    reconstruction: Annotated[Path, typer.Argument(help="What was made of it, of the same size and length.")],
    out: Annotated[Path, typer.Argument(help="The page to write, which ends in .html.")],
    size: options.ClipSizeOption = None,
    fit: options.FitOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    length: options.LengthOption = None,
    lpips: options.LpipsOption = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Write a page that shows a clip and its reconstruction.

    Side by side and under a slider, and where they differ.

    The options that select frames and sizes are for SOURCE: give those that RECONSTRUCTION was made with. The page
    opens in any browser, and needs no network.
    """
    selection = options.parse_selection(size, fit, frames, fps, length)

    from wan_vae.compare import report_file

    with Progress() as progress:
        result = report_file(
            source,
            reconstruction,
            out,
            lpips=lpips,
            overwrite=overwrite,
            progress=progress,
            **selection,
        )
    (score,), (worst,) = result.scores.values(), result.worst.values()
    print_file_result(result, as_json=as_json, **score.to_dict(), worst_frame=worst)
