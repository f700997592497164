"""A report on two clips that are there already: a source and its reconstruction, by whatever program."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from wan_vae.arguments import check_flag, check_path
from wan_vae.errors import ClipError
from wan_vae.evaluation.metrics import Metrics, Score
from wan_vae.io import Clip, ClipInfo, Frames, open_clip
from wan_vae.io.atomic_output import check_output, written_beside
from wan_vae.io.fit import Fit, Size
from wan_vae.report.facts import clip_facts
from wan_vae.report.page import Report, check_page

_CHUNK = 16  # frames


@dataclass(frozen=True)
class ReportResult:
    """A report that was written.

    Attributes:
        output: The page.
        frames: Frames that were compared.
        width, height: Their size, in pixels.
        fps: Frame rate of the source.
        seconds: Time from the first frame read to the page written.
        score: Means over the frames.
        worst_frame: The frame of the lowest PSNR.
    """

    output: Path
    frames: int
    width: int
    height: int
    fps: Fraction
    seconds: float
    score: Score
    worst_frame: int

    @property
    def frames_per_second(self) -> float:
        """Mean speed of the call, not of the clip."""
        return self.frames / self.seconds


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
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> ReportResult:
    """Compare a clip with its reconstruction, frame by frame, and write a page that shows both.

    Memory does not grow with the clips' length, but for the metrics of each frame. Transparent pixels are laid over
    black.

    Args:
        source: A video, an animation, an image, or a folder of images. `size`, `fit`, `frames`, `fps` and `length`
            select from it as in `encode_file`: give those that the reconstruction was made with.
        reconstruction: The same kinds, with as many frames of the same size.
        out: The page to write, which ends in .html.
        overwrite: Replace a file that exists.
        progress: Called with the number of frames done and in total. It may raise an exception to cancel the call.

    Raises:
        UserError: A file or an option cannot be used, or the clips do not have the same size and number of frames.
    """
    source, reconstruction = check_path("source", source), check_path("reconstruction", reconstruction)
    out = check_path("out", out)
    check_flag("overwrite", overwrite)
    check_page(out)
    check_output(out, overwrite=overwrite, inputs=(source, reconstruction))
    with ExitStack() as stack:
        one = stack.enter_context(open_clip(source, size=size, fit=fit, frames=frames, fps=fps, length=length))
        other = stack.enter_context(open_clip(reconstruction))
        info = one.info
        _check_alike(source, info, reconstruction, other.info)
        report = Report(source.name, info.frames, info.width, info.height, info.fps, [reconstruction.name])
        stack.enter_context(report)
        metrics = Metrics()
        if progress is not None:
            progress(0, info.frames)
        begun = time.perf_counter()
        for pair in zip(_frames(one), _frames(other), strict=True):
            metrics.add(*pair)
            report.add(0, *pair, metrics.frames[-1])
            if progress is not None:
                progress(len(metrics.frames), info.frames)
        written = {"codec": other.info.codec, "container": other.info.container, "bits a channel": other.info.bit_depth}
        options = {"size": size, "fit": fit, "frames": frames, "fps": fps, "length": length}
        note = "The clips were compared as they are stored."
        page = stack.enter_context(written_beside(out, overwrite=overwrite))
        report.write(page, clip_facts(source, info, options), [{"file": reconstruction, **written}], note)
    seconds = time.perf_counter() - begun
    psnrs = [score.psnr for score in metrics.frames]
    worst = min(range(len(psnrs)), key=psnrs.__getitem__)
    return ReportResult(out, len(psnrs), info.width, info.height, info.fps, seconds, metrics.score(), worst)


def _check_alike(source: Path, info: ClipInfo, reconstruction: Path, other: ClipInfo) -> None:
    if (other.width, other.height) != (info.width, info.height):
        raise ClipError(
            f"{reconstruction} is {other.width}x{other.height} and {source} {info.width}x{info.height}; only clips of"
            f" one size compare, so pass the --size that it was made with (in Python, size), such as"
            f" {other.width}x{other.height}."
        )
    if other.frames != info.frames:
        raise ClipError(
            f"{reconstruction} has {_count(other.frames)} and {source} {_count(info.frames)}; only clips of one length"
            " compare, so pass the --fps, --frames or --length that it was made with (in Python, fps, frames, length)."
        )


def _count(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _frames(clip: Clip) -> Iterator[Frames]:
    for chunk in clip.chunks(_CHUNK):
        yield from chunk
