"""Pages that show how close reconstructions are to a clip: the commands `report` and `compare` as functions.

>>> from wan_vae import compare_file, report_file
>>> report_file("clip.mp4", "reconstruction.mp4", "report.html")
>>> compare_file("clip.mp4", "comparison.html", ["wan2.1", "lightvae"])

Memory does not grow with the clip's length, but for the metrics of each frame. A page appears under its name only when
it is complete. `overwrite`, `progress` and `load` are those of `wan_vae.files`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import zip_longest
from pathlib import Path

import torch

from wan_vae.arguments import check_path
from wan_vae.chunks import reconstruct_clip
from wan_vae.errors import ClipError, UserError
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.evaluation.metrics import Metrics, Score
from wan_vae.files import FileResult, Loader, Progress, check_options, load_encoder, model_name, no_progress
from wan_vae.inference.budget import Budget
from wan_vae.io import Clip, ClipInfo, Frames, open_clip
from wan_vae.io.atomic_output import check_output, written_beside
from wan_vae.io.fit import Fit, Size
from wan_vae.report.facts import clip_facts, model_facts
from wan_vae.report.page import Report, check_page
from wan_vae.tiny import TinyVAE, load_on_best_device
from wan_vae.vae import WanVAE

_CHUNK = 16  # frames


@dataclass(frozen=True)
class ReportResult(FileResult):
    """A page that was written.

    Attributes:
        scores: Means over the frames of each reconstruction, by its name on the page.
        worst: The frame of the lowest PSNR of each.
    """

    scores: dict[str, Score]
    worst: dict[str, int]


def report_file(
    source: str | Path,
    reconstruction: str | Path,
    out: str | Path,
    *,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    lpips: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ReportResult:
    """Compare a clip with its reconstruction by whatever program, as they are stored, and write a page on both.

    Transparent pixels are laid over black.

    Args:
        source: A video, an animation, an image, or a folder of images. `size`, `fit`, `frames`, `fps` and `length`
            select from it as in `encode_file`: give those that the reconstruction was made with.
        reconstruction: The same kinds, with as many frames of the same size.
        out: The page to write, which ends in .html.
        lpips: Also measure LPIPS, with this file of AlexNet's weights (see `wan_vae.evaluation.lpips.LPIPS`).

    Raises:
        UserError: A file or an option cannot be used, or the clips do not have the same size and number of frames.
    """
    source, reconstruction = check_path("source", source), check_path("reconstruction", reconstruction)
    progress = progress or no_progress
    check_options("auto", progress, load_on_best_device, overwrite=overwrite)
    out = _check_out(out, overwrite, source, reconstruction)
    distance = None if lpips is None else LPIPS("alex", check_path("lpips", lpips))
    with ExitStack() as stack:
        one = stack.enter_context(open_clip(source, size=size, fit=fit, frames=frames, fps=fps, length=length))
        other = stack.enter_context(open_clip(reconstruction))
        info, made = one.info, other.info
        _check_alike(source, info, reconstruction, made)
        names = [reconstruction.absolute().name]
        report = stack.enter_context(
            Report(source.absolute().name, info.frames, info.width, info.height, info.fps, names)
        )
        metrics = Metrics(distance)
        progress(0, info.frames)
        begun = time.perf_counter()
        for frame, decoded in zip_longest(_frames(one), _frames(other)):
            if frame is None or decoded is None:
                ended = source if frame is None else reconstruction
                raise ClipError(
                    f"{ended} ends after {len(metrics.frames)} frames, before the other clip; only clips of one length"
                    " compare."
                )
            metrics.add(frame, decoded)
            report.add(0, frame, decoded, metrics.frames[-1])
            progress(len(metrics.frames), info.frames)
        facts = {"file": reconstruction, "codec": f"{made.codec} in {made.container}", "bits a channel": made.bit_depth}
        options = {"size": size, "fit": fit, "frames": frames, "fps": fps, "length": length}
        page = stack.enter_context(written_beside(out, overwrite=overwrite))
        report.write(page, clip_facts(source, info, options), [facts], "The clips were compared as they are stored.")
    return _result(out, info, begun, dict(zip(names, [metrics], strict=True)))


def compare_file(
    clip: str | Path,
    out: str | Path,
    vaes: "Sequence[WanVAE | TinyVAE | str | Path]",
    *,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    lpips: str | Path | None = None,
    memory: Budget = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    load: Loader = load_on_best_device,
) -> ReportResult:
    """Reconstruct a clip with one model after the other, and write a page that shows the results side by side.

    `clip`, `size`, `fit`, `frames`, `fps`, `length` and `memory` are those of `encode_file`, `lpips` that of
    `report_file`.

    Args:
        out: The page to write, which ends in .html.
        vaes: Models, or names or paths of checkpoints; of these, one at a time is in memory.

    Raises:
        UserError: A file, a model or an option cannot be used, or a model is named twice.
    """
    clip, progress = check_path("clip", clip), progress or no_progress
    check_options(memory, progress, load, overwrite=overwrite)
    names = _names(vaes)
    out = _check_out(out, overwrite, clip, *(Path(vae) for vae in vaes if isinstance(vae, str | Path)))
    distance = None if lpips is None else LPIPS("alex", check_path("lpips", lpips))
    scores: dict[str, Metrics] = {}
    facts = []
    with ExitStack() as stack:
        source = stack.enter_context(open_clip(clip, size=size, fit=fit, frames=frames, fps=fps, length=length))
        stack.enter_context(torch.inference_mode())
        info = source.info
        total = info.frames * len(names)
        report = stack.enter_context(
            Report(clip.absolute().name, info.frames, info.width, info.height, info.fps, names)
        )
        begun = time.perf_counter()
        for number, (name, vae) in enumerate(zip(names, vaes, strict=True)):
            model = load_encoder(vae, load, source, clip)
            if not isinstance(model, WanVAE | TinyVAE):
                raise UserError(f"{name} is in shards, but comparisons are the work of one process; pass it unsharded.")
            if model.config.output_upscale != 1:
                raise UserError(
                    f"{name} decodes to {model.config.output_upscale} times the size, so the source has no pixels to"
                    " compare with; leave it out."
                )
            if number == 0:
                progress(0, total)
            metrics = scores[name] = Metrics(distance and distance.to(model.device))
            started = time.perf_counter()
            show = partial(report.add_latents, number, temporal_compression=model.config.temporal_compression)
            for pair in reconstruct_clip(model, source, memory, show):
                metrics.add(*pair)
                report.add(number, *pair, metrics.frames[-1])
                progress(number * info.frames + len(metrics.frames), total)
            facts.append(model_facts(model, model_name(vae, name), len(metrics.frames), time.perf_counter() - started))
            del model  # before the next is loaded
        options = {"size": size, "fit": fit, "frames": frames, "fps": fps, "length": length, "memory": memory}
        page = stack.enter_context(written_beside(out, overwrite=overwrite))
        note = "Frames were compared as they were decoded."
        report.write(page, clip_facts(clip, info, options), facts, note)
    return _result(out, info, begun, scores)


def _check_out(out: str | Path, overwrite: bool, *inputs: Path) -> Path:
    out = check_path("out", out)
    check_page(out)
    check_output(out, overwrite=overwrite, inputs=inputs)
    return out


def _names(vaes: "Sequence[WanVAE | TinyVAE | str | Path]") -> list[str]:
    """Return a name for each model, for a checkpoint as many of the last parts of its path as tell it from others."""
    if not isinstance(vaes, Sequence) or isinstance(vaes, str) or not vaes:
        raise UserError("There is no checkpoint to compare; name one or more.")
    labels = [model_name(vae, f"model {number}") for number, vae in enumerate(vaes, 1)]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{label} is named twice; name each checkpoint once.")
    for parts in range(1, max(len(Path(label).parts) for label in labels)):
        short = ["/".join(Path(label).parts[-parts:]) for label in labels]
        if len(set(short)) == len(short):
            return short
    return labels


def _result(out: Path, info: ClipInfo, begun: float, compared: dict[str, Metrics]) -> ReportResult:
    seconds = time.perf_counter() - begun
    psnrs = {name: [score.psnr for score in metrics.frames] for name, metrics in compared.items()}
    return ReportResult(
        out,
        len(next(iter(psnrs.values()))),
        info.width,
        info.height,
        info.fps,
        seconds,
        {name: metrics.score() for name, metrics in compared.items()},
        {name: min(range(len(values)), key=values.__getitem__) for name, values in psnrs.items()},
    )


def _check_alike(source: Path, info: ClipInfo, reconstruction: Path, made: ClipInfo) -> None:
    if (made.width, made.height) != (info.width, info.height):
        raise ClipError(
            f"{reconstruction} is {made.width}x{made.height} and {source} {info.width}x{info.height}; only clips of"
            f" one size compare, so pass the --size that it was made with (in Python, size), such as"
            f" {made.width}x{made.height}."
        )
    if made.frames != info.frames:
        raise ClipError(
            f"{reconstruction} has {_count(made.frames)} and {source} {_count(info.frames)}; only clips of one length"
            " compare, so pass the --fps, --frames or --length that it was made with (in Python, fps, frames, length)."
        )


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _frames(clip: Clip) -> Iterator[Frames]:
    for chunk in clip.chunks(_CHUNK):
        yield from chunk
