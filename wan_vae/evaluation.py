"""How well a model reconstructs shots of clips."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_vae.bench import Shot
from wan_vae.contact_sheet import ContactSheet
from wan_vae.errors import UserError
from wan_vae.fitting import Frames
from wan_vae.metrics import Fidelity
from wan_vae.perceptual import Perceptual
from wan_vae.reconstruction import reconstructed
from wan_vae.vae import WanVAE
from wan_vae.video import open_clip

_MEASURES = (("PSNR (dB)", "psnr", 2), ("SSIM", "ssim", 4), ("LPIPS", "lpips", 4))


@dataclass(frozen=True)
class Score:
    """How close a reconstruction is to its source, each value a mean over frames or over shots.

    Attributes:
        psnr: In dB, on RGB; infinite where a frame came back exactly.
        ssim: At most 1, on RGB; None for frames smaller than its window.
        lpips: 0 or more, less is closer; None where it was not measured.
    """

    psnr: float
    ssim: float | None
    lpips: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types; JSON has no infinity."""
        return {**vars(self), "psnr": "infinite" if self.psnr == math.inf else self.psnr}


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
        perceptual: Measures LPIPS, on the device of `vae`; None to leave that out.
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
    fidelity, distances, count = Fidelity(), 0.0, 0
    with open_clip(shot.clip, size=size, frames=(shot.start, shot.stop)) as clip, torch.inference_mode():
        drawing = ContactSheet(clip.info.frames) if sheet is not None else None
        for source, decoded in reconstructed(vae, clip.chunks(vae.config.temporal_compression), *size):
            fidelity.update(source[None], decoded[None])
            if perceptual is not None:
                distances += perceptual(_picture(source, vae.device), _picture(decoded, vae.device)).item()
            if drawing is not None:
                drawing.add(source, decoded)
            count += 1
    if drawing is not None and sheet is not None:
        drawing.save(sheet)
    lpips = None if perceptual is None else distances / count
    return Result(shot, count, size, Score(fidelity.psnr(), fidelity.ssim(), lpips))


def mean_score(results: Sequence[Result]) -> Score:
    """Return the mean over shots, in which each counts the same however long it is; None where any shot has None."""
    scores = [result.score for result in results]
    psnr = _mean([score.psnr for score in scores])
    assert psnr is not None
    return Score(psnr, _mean([score.ssim for score in scores]), _mean([score.lpips for score in scores]))


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
    return {"shots": shots, "mean": mean_score(results).to_dict()}


def markdown_table(results: Sequence[Result]) -> str:
    """Return a table of the shots and their mean, for a model card; columns that nothing was measured for are left out.

    Returns:
        Lines that each end in a newline.
    """
    mean = mean_score(results)
    scores = [*(result.score for result in results), mean]
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


def _picture(frame: Frames, device: torch.device) -> Tensor:
    values = torch.from_numpy(frame.astype(np.float32)).to(device) * (2 / np.iinfo(frame.dtype).max) - 1
    return values.permute(2, 0, 1)[None]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(values) if len(present) == len(values) else None
