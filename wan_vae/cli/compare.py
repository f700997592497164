"""`wan-vae compare`: a page that shows what several checkpoints make of one clip."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wan_vae.cli import options
from wan_vae.cli.common import Progress, load_model, print_file_result

if TYPE_CHECKING:
    from wan_vae.evaluation.metrics import Score


def compare(
    clip: Annotated[Path, typer.Argument(help="A video, an animation, an image, or a folder of images.")],
    out: Annotated[Path, typer.Argument(help="The page to write, which ends in .html.")],
    checkpoint: Annotated[
        list[str],
        typer.Option(help="A checkpoint file, a diffusers folder, or a name; give several.", metavar="NAME|PATH"),
    ],
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    memory: options.MemoryOption = "auto",
    size: options.ClipSizeOption = None,
    fit: options.FitOption = None,
    frames: options.FramesOption = None,
    fps: options.FpsOption = None,
    length: options.LengthOption = None,
    lpips: options.LpipsOption = None,
    overwrite: options.OverwriteOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Write a page of what several checkpoints make of one clip.

    They are shown side by side, with their errors.

    The page opens in any browser, and needs no network.
    """
    selection = options.parse_selection(size, fit, frames, fps, length)

    from wan_vae.compare import compare_file

    with Progress() as progress:
        result = compare_file(
            clip,
            out,
            checkpoint,
            lpips=lpips,
            memory=memory,
            overwrite=overwrite,
            progress=progress,
            load=partial(load_model, device=device, dtype=dtype),
            **selection,
        )
    scores = {name: score.to_dict() for name, score in result.scores.items()}
    if as_json:
        print_file_result(result, as_json=True, scores=scores, worst_frames=result.worst)
    else:
        listed = [f"{name} {_in_words(score)}" for name, score in result.scores.items()]
        print_file_result(result, as_json=False, scores=listed)


def _in_words(score: "Score") -> str:
    more = {"SSIM": score.ssim, "LPIPS": score.lpips}
    words = [f"{name} {value:.4f}" for name, value in more.items() if value is not None]
    return " ".join([f"PSNR {score.psnr:.2f} dB", *words])
