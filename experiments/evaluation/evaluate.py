"""Evaluation of a model on a set of shots: the set from a YAML file, the scores of each shot, and reports."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wan_vae.config import read_yaml
from wan_vae.errors import UserError
from wan_vae.evaluation.contact_sheet import ContactSheet
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.evaluation.metrics import Metrics, Score, mean_score
from wan_vae.evaluation.reconstruct import reconstruct_frames
from wan_vae.io import open_clip
from wan_vae.vae import WanVAE

_KEYS = ("frames", "short_side", "shots")
# Title, field of `Score`, digits.
_MEASURES = (("PSNR (dB)", "psnr", 2), ("SSIM", "ssim", 4), ("LPIPS", "lpips", 4))


@dataclass(frozen=True)
class Shot:
    """Part of a clip without a cut.

    Attributes:
        clip: The file.
        start: Index of the first frame.
        stop: Index after the last frame; the clip may end earlier.
    """

    clip: Path
    start: int
    stop: int

    @property
    def name(self) -> str:
        """A name for files about this shot, such as "bikes-030"."""
        return f"{self.clip.stem}-{self.start:03}"


@dataclass(frozen=True)
class EvaluationSet:
    """Shots to evaluate models on.

    Attributes:
        short_side: Length of the shorter side that each shot is scaled to, in pixels.
        shots: The shots in the order of the report.
    """

    short_side: int
    shots: tuple[Shot, ...]


def read_evaluation_set(path: Path, clips: Path) -> EvaluationSet:
    """Read an evaluation set.

    Args:
        path: A YAML file such as `experiments/evaluation/configs/bench.yaml`.
        clips: The folder of the clips.

    Raises:
        UserError: The file is missing, not YAML, or not an evaluation set, or a clip is missing.
    """
    content = read_yaml(path, missing=f"{path} does not exist; experiments/evaluation/configs has one.")
    if not isinstance(content, dict) or sorted(map(str, content)) != sorted(_KEYS):
        raise UserError(f"{path} does not list shots: it must have {', '.join(_KEYS)} and nothing else.")
    for key in ("frames", "short_side"):
        if type(content[key]) is not int or content[key] < 1:
            raise UserError(f"{path} has {key}: {content[key]!r}; it must be a whole number above 0.")
    starts_of = content["shots"]
    if not isinstance(starts_of, dict) or not starts_of:
        raise UserError(f"{path} has shots: {starts_of!r}; it must map clips to the first frames of their shots.")
    shots = []
    for clip, starts in starts_of.items():
        if not _are_starts(starts):
            raise UserError(f"{path} has {clip}: {starts!r}; it must be a list of ever higher whole numbers from 0 on.")
        if not (clips / str(clip)).exists():
            raise UserError(f"{path} lists {clip}, which is not in {clips}; name the folder that it is in.")
        for start, following in itertools.zip_longest(starts, starts[1:], fillvalue=math.inf):
            shots.append(Shot(clips / str(clip), int(start), int(min(start + content["frames"], following))))
    names = [shot.name for shot in shots]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path} has two shots that are called {repeated[0]}; rename one of the clips.")
    return EvaluationSet(content["short_side"], tuple(shots))


def _are_starts(starts: object) -> bool:
    return (
        isinstance(starts, list)
        and bool(starts)
        and all(type(start) is int and start >= 0 for start in starts)
        and all(first < second for first, second in itertools.pairwise(starts))
    )


@dataclass(frozen=True)
class Result:
    """The score of one shot.

    Attributes:
        shot: The shot.
        frames: Number of frames that were compared.
        size: Width and height of the compared frames, in pixels.
        score: The means over the frames.
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
    lpips: LPIPS | None = None,
    sheet: Path | None = None,
) -> Result:
    """Reconstruct a shot and compare the decoded frames, rounded to 8 bits, with the source's.

    Args:
        vae: The model.
        shot: The shot to reconstruct.
        short_side: Length of the shorter side that the shot is scaled to, in pixels; see `scaled_size`.
        lpips: The LPIPS network; None to leave LPIPS out.
        sheet: A PNG file to write a contact sheet to; None for no contact sheet.

    Raises:
        UserError: The clip cannot be read or has no such frames, or the decoder upscales.
    """
    if vae.config.output_upscale != 1:
        raise UserError(
            f"a model that decodes to {vae.config.output_upscale} times the size cannot be measured, since the source"
            " has no pixels of that size to compare with; use one that keeps the size."
        )
    with open_clip(shot.clip) as clip:
        size = scaled_size(clip.info.width, clip.info.height, short_side)
    metrics = Metrics(lpips)
    with open_clip(shot.clip, size=size, frames=(shot.start, shot.stop)) as clip, torch.inference_mode():
        drawing = ContactSheet(clip.info.frames) if sheet is not None else None
        chunk_frames = vae.default_chunk_size(clip.info.height, clip.info.width) * vae.config.temporal_compression
        for source, decoded in reconstruct_frames(vae, clip.chunks(chunk_frames), *size):
            metrics.add(source, decoded)
            if drawing is not None:
                drawing.add(source, decoded)
    if drawing is not None and sheet is not None:
        drawing.save(sheet)
    return Result(shot, len(metrics.frames), size, metrics.score())


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
    """Return a Markdown table of the shots and their mean; columns without any value are left out."""
    scores = [result.score for result in results]
    mean = mean_score(scores)
    measures = [measure for measure in _MEASURES if any(getattr(score, measure[1]) is not None for score in scores)]

    def row(label: str, size: str, score: Score) -> tuple[str, ...]:
        values = ((getattr(score, name), digits) for _, name, digits in measures)
        return label, size, *("" if value is None else f"{value:.{digits}f}" for value, digits in values)

    rows = [
        ("shot", "size", *(title for title, _, _ in measures)),
        ("---", "---", *("---:" for _ in measures)),
        *(row(_label(result), f"{result.size[0]}x{result.size[1]}", result.score) for result in results),
        row("mean", "", mean),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return the width and height, in pixels, at which the shorter side is `short_side`; the longer one is even."""
    long_side = 2 * round(short_side * max(width, height) / min(width, height) / 2)
    if width == height:
        return short_side, short_side
    return (long_side, short_side) if width > height else (short_side, long_side)


def _label(result: Result) -> str:
    return f"{result.shot.clip.name}, frames {result.shot.start} to {result.shot.start + result.frames - 1}"
