"""A clip encoded and decoded again, and measured: the command `reconstruct` as a function.

>>> from wan_vae import reconstruct_file
>>> print(reconstruct_file("clip.mp4", "copy.mp4", "nano", contact_sheet="sheet.png").score)

What `wan_vae.files` says of memory, outputs, arguments and errors holds here, too.
"""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from wan_vae.arguments import check_path
from wan_vae.chunks import Model, reconstruct_clip
from wan_vae.errors import UserError
from wan_vae.evaluation.contact_sheet import ContactSheet
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.evaluation.metrics import Metrics, Score
from wan_vae.evaluation.reconstruct import side_by_side as beside
from wan_vae.evaluation.reconstruct import side_by_side_width
from wan_vae.files import (
    DecodedClip,
    FileResult,
    Loader,
    Progress,
    check_options,
    inputs_of,
    is_first_rank,
    load_encoder,
    model_name,
    no_progress,
    warn_of_rest,
)
from wan_vae.inference.budget import Budget
from wan_vae.io import Clip, Frames, open_clip
from wan_vae.io.atomic_output import check_distinct, check_output, written_beside
from wan_vae.io.fit import Fit, Size
from wan_vae.io.writer import check_clip
from wan_vae.report.facts import clip_facts, model_facts
from wan_vae.report.page import Report, check_page
from wan_vae.tiny import TinyVAE, load_on_best_device
from wan_vae.vae import WanVAE

if TYPE_CHECKING:
    from wan_vae.sharding import ShardedVAE

_logger = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class ReconstructResult(FileResult):
    """A clip that was encoded and decoded.

    Attributes:
        side_by_side: The clip of source and reconstruction, if it was written.
        contact_sheet: The PNG file of a few frames, if it was written.
        report: The HTML page, if it was written.
        score: How close the decoded frames are to the source's; None where the model decodes to another size, and in
            shards for all processes but the first.
    """

    side_by_side: Path | None
    contact_sheet: Path | None
    report: Path | None
    score: Score | None


def reconstruct_file(
    clip: str | Path,
    out: str | Path,
    vae: "Model | str | Path",
    *,
    side_by_side: str | Path | None = None,
    contact_sheet: str | Path | None = None,
    report: str | Path | None = None,
    lpips: str | Path | None = None,
    lossless: bool = False,
    size: Size | None = None,
    fit: Fit | None = None,
    frames: tuple[int | None, int | None] = (None, None),
    fps: Fraction | float | None = None,
    length: int | None = None,
    memory: Budget = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    load: Loader = load_on_best_device,
) -> ReconstructResult:
    """Encode a clip and decode it again, and measure how close the decoded frames are to the source's.

    PSNR and SSIM are of the frames before `out` is compressed. Audio is carried over where the format of `out` can hold
    it. `clip`, `size`, `fit`, `frames`, `fps` and `length` are those of `encode_file`.

    Args:
        out: The clip to write; its extension decides the format, and none is a folder of PNG files.
        side_by_side: Also write this clip: the source on the left, the reconstruction on the right.
        contact_sheet: Also write this PNG file of a few frames: source, reconstruction, error.
        report: Also write this HTML page, which shows source, reconstruction, errors, metrics and latents of all
            frames (see docs/report.md).
        lpips: Also measure LPIPS, with this file of AlexNet's weights (see `wan_vae.evaluation.lpips.LPIPS`).
        lossless: Write the clips' pixels exactly.
    """
    clip, progress = check_path("clip", clip), progress or no_progress
    check_options(memory, progress, load, overwrite=overwrite, lossless=lossless)
    places = _Places(
        check_path("out", out),
        None if side_by_side is None else check_path("side_by_side", side_by_side),
        None if contact_sheet is None else check_path("contact_sheet", contact_sheet),
        None if report is None else check_path("report", report),
    )
    distance = None if lpips is None else LPIPS("alex", check_path("lpips", lpips))
    places.check(clip, inputs_of(clip, vae), overwrite)
    with ExitStack() as stack:
        source = stack.enter_context(open_clip(clip, size=size, fit=fit, frames=frames, fps=fps, length=length))
        info = source.info
        if info.bit_depth > 8:
            _logger.warning(f"{clip} has {info.bit_depth} bits a channel; {places.out} is written with 8.")
        warn_of_rest(source, clip, places.out)
        for path in places.clips:
            check_clip(path, fps=info.fps, lossless=lossless)
        model, name = load_encoder(vae, load, source, clip), model_name(vae)
        scale = model.config.output_upscale
        comparing = {"a contact sheet": places.contact_sheet, "a report": places.report, "LPIPS": distance}
        if scale != 1 and (asked := [what for what, given in comparing.items() if given is not None]):
            raise UserError(
                f"{name} decodes to {scale} times the size, so the source has no pixels for {asked[0]} to show"
                " errors against; take --side-by-side (in Python, side_by_side) instead."
            )
        stack.enter_context(torch.inference_mode())
        outputs = _Outputs(
            stack, places, clip, source, model, name, distance=distance, lossless=lossless, overwrite=overwrite
        )
        progress(0, info.frames)
        begun, done = time.perf_counter(), 0
        for original, decoded in reconstruct_clip(model, source, memory, outputs.on_latents):
            outputs.add(original, decoded)
            done += 1
            progress(done, info.frames)
        options = {"size": size, "fit": fit, "frames": frames, "fps": fps, "length": length, "lossless": lossless}
        outputs.finish(done, time.perf_counter() - begun, {**options, "memory": memory})
    seconds = time.perf_counter() - begun
    drawn = places.side_by_side, places.contact_sheet, places.report
    return ReconstructResult(
        places.out, done, info.width * scale, info.height * scale, info.fps, seconds, *drawn, outputs.score()
    )


@dataclass(frozen=True)
class _Places:
    """The files of a reconstruction."""

    out: Path
    side_by_side: Path | None
    contact_sheet: Path | None
    report: Path | None

    @property
    def clips(self) -> list[Path]:
        return [self.out] if self.side_by_side is None else [self.out, self.side_by_side]

    def check(self, clip: Path, inputs: tuple[Path, ...], overwrite: bool) -> None:
        """Refuse what cannot be written, before any work."""
        sheet = self.contact_sheet
        if sheet is not None and sheet.suffix.lower() != ".png":
            raise UserError(f"The contact sheet is {sheet}, but it is a PNG file; name one that ends in .png.")
        if self.report is not None:
            check_page(self.report)
        paths = [path for path in (*self.clips, sheet, self.report) if path is not None]
        for path in paths:
            check_output(path, overwrite=overwrite, inputs=inputs, may_be_folder=not path.suffix)
            if clip.is_dir() and clip.resolve() in path.resolve().parents:
                raise UserError(f"{path} is in {clip}, the folder that it is made from; name a place outside.")
        check_distinct(*paths)


class _Outputs:
    """Writes and measures a reconstruction, a frame at a time; in shards, all but the first rank do neither.

    Args:
        stack: Completes the files under their names, or removes them after an exception.
        places: The files.
        clip: The source's file.
        source: The source.
        model: The model.
        name: What the page calls it.
        distance: Measures LPIPS, if it is to be measured.
        lossless: Whether clips keep their pixels exactly.
        overwrite: Whether files that exist are replaced.

    Attributes:
        on_latents: Takes the latents as they are encoded, where the page shows them.
    """

    def __init__(
        self,
        stack: ExitStack,
        places: _Places,
        clip: Path,
        source: Clip,
        model: "WanVAE | TinyVAE | ShardedVAE",
        name: str,
        *,
        distance: LPIPS | None,
        lossless: bool,
        overwrite: bool,
    ) -> None:
        self._stack, self._places, self._clip, self._info = stack, places, clip, source.info
        self._model, self._name, self._overwrite = model, name, overwrite
        info, scale, writes = source.info, model.config.output_upscale, is_first_rank(model)
        width, height = info.width * scale, info.height * scale
        form: dict[str, Any] = {"lossless": lossless, "overwrite": overwrite, "audio": source.audio}
        self._out = DecodedClip(stack, places.out, info, width, height, model, **form)
        self._pairs = None
        if places.side_by_side is not None:
            wide = side_by_side_width(width)
            self._pairs = DecodedClip(stack, places.side_by_side, info, wide, height, model, **form)
        self._sheet = ContactSheet(info.frames) if places.contact_sheet is not None and writes else None
        self._metrics = Metrics(distance and distance.to(model.device)) if scale == 1 and writes else None
        self._page = self.on_latents = None
        if places.report is not None and writes:
            self._page = stack.enter_context(
                Report(clip.absolute().name, info.frames, width, height, info.fps, [Path(name).name])
            )
            time_scale = model.config.temporal_compression
            self.on_latents = partial(self._page.add_latents, 0, temporal_compression=time_scale)

    def add(self, original: Frames, decoded: NDArray[np.uint8]) -> None:
        """Take the next frame of the source (h, w, c), and what it was decoded to (H, W, c)."""
        self._out.write(decoded[None])
        if self._pairs is not None:
            self._pairs.write(beside(original, decoded)[None])
        if self._sheet is not None:
            self._sheet.add(original, decoded)
        if self._metrics is not None:
            self._metrics.add(original, decoded)
            if self._page is not None:
                self._page.add(0, original, decoded, self._metrics.frames[-1])

    def finish(self, frames: int, seconds: float, options: dict[str, Any]) -> None:
        """Complete all files before the first gets its name, so that they appear together or not at all."""
        self._out.finish()
        if self._pairs is not None:
            self._pairs.finish()
        places, beside_it = self._places, partial(written_beside, overwrite=self._overwrite)
        if self._sheet is not None and places.contact_sheet is not None:
            self._sheet.save(self._stack.enter_context(beside_it(places.contact_sheet)))
        if self._page is not None and places.report is not None:
            facts = model_facts(self._model, self._name, frames, seconds)
            note = "Frames were compared before they were compressed to a clip."
            place = self._stack.enter_context(beside_it(places.report))
            self._page.write(place, clip_facts(self._clip, self._info, options), [facts], note)

    def score(self) -> Score | None:
        """Return how close the frames are; None where the model decodes to another size, or another rank knows."""
        return None if self._metrics is None else self._metrics.score()
