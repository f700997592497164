"""How well a model reconstructs shots of clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wan_vae.bench import Shot
from wan_vae.contact_sheet import ContactSheet
from wan_vae.errors import UserError
from wan_vae.metrics import Fidelity, Score, mean_score
from wan_vae.perceptual import Perceptual
from wan_vae.reconstruction import reconstructed
from wan_vae.vae import WanVAE
from wan_vae.video import open_clip

_MEASURES = (("PSNR (dB)", "psnr", 2), ("SSIM", "ssim", 4), ("LPIPS", "lpips", 4))


@dataclass(frozen=True)
class Result:
    """The score of one shot.

    Attributes:
        shot: Which.
        frames: How many there were.
        size: Width and height that it was measured at.
        score: The means over its frames.
    """

    shot: Shot
    frames: int
    size: tuple[int, int]
    score: Score


def evaluate_shot(
    vae: WanVAE,
    shot: Shot,
    short_side: int,
    *,
    perceptual: Perceptual | None = None,
    sheet: Path | None = None,
) -> Result:
    """Reconstruct a shot and measure how close the decoded frames, rounded to 8 bits, are to the source's.

    Args:
        vae: The model.
        shot: What to reconstruct.
        short_side: Pixels of the shorter side that it is scaled to; the longer one becomes the nearest even number.
        perceptual: Measures LPIPS; None to leave that out.
        sheet: A PNG file to draw the frames in; None for no such file.

    Raises:
        UserError: The clip cannot be read or has no such frames, or the model's frames are larger than the source's.
    """
    if vae.config.output_upscale != 1:
        raise UserError(
            f"a model that decodes to {vae.config.output_upscale} times the size cannot be measured, for the source has"
            " no such pixels to compare with; take one that keeps the size."
        )
    with open_clip(shot.clip) as clip:
        size = scaled_size(clip.info.width, clip.info.height, short_side)
    fidelity, count = Fidelity(perceptual), 0
    with open_clip(shot.clip, size=size, frames=(shot.start, shot.stop)) as clip, torch.inference_mode():
        drawing = ContactSheet(clip.info.frames) if sheet is not None else None
        together = vae.latents_at_once(clip.info.height, clip.info.width) * vae.config.temporal_compression
        for source, decoded in reconstructed(vae, clip.chunks(together), *size):
            fidelity.add(source, decoded)
            if drawing is not None:
                drawing.add(source, decoded)
            count += 1
    if drawing is not None and sheet is not None:
        drawing.save(sheet)
    return Result(shot, count, size, fidelity.score())


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return the scores of the shots and their mean as JSON types."""
    shots = [
        {
            "clip": result.shot.clip.name,
            "start": result.shot.start,
            "frames": result.frames,
            "size": f"{result.size[0]}x{result.size[1]}",
            **result.score.to_dict(),
        }
        for result in results
    ]
    return {"shots": shots, "mean": mean_score([result.score for result in results]).to_dict()}


def markdown_table(results: Sequence[Result]) -> str:
    """Return a table of the shots and their mean, for a model card; columns that nothing was measured for are left out.

    Returns:
        Lines that each end in a newline.
    """
    scores = [result.score for result in results]
    mean = mean_score(scores)
    measures = [measure for measure in _MEASURES if any(getattr(score, measure[1]) is not None for score in scores)]

    def row(shot: str, size: str, score: Score) -> tuple[str, ...]:
        values = ((getattr(score, name), digits) for _, name, digits in measures)
        return shot, size, *("" if value is None else f"{value:.{digits}f}" for value, digits in values)

    rows = [
        ("shot", "size", *(title for title, _, _ in measures)),
        ("---", "---", *("---:" for _ in measures)),
        *(row(_described(result), f"{result.size[0]}x{result.size[1]}", result.score) for result in results),
        row("mean", "", mean),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return width and height with the shorter one `short_side` and the longer one the nearest even number, pixels."""
    long_side = 2 * round(short_side * max(width, height) / min(width, height) / 2)
    if width == height:
        return short_side, short_side
    return (long_side, short_side) if width > height else (short_side, long_side)


def _described(result: Result) -> str:
    return f"{result.shot.clip.name}, frames {result.shot.start} to {result.shot.start + result.frames - 1}"
