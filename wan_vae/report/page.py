"""Collects a clip's frames, their reconstructions and latents, and writes the page that shows them."""

import base64
import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wan_vae.errors import UserError, printable
from wan_vae.evaluation.contact_sheet import GAIN, HEAT_STOPS, error_picture
from wan_vae.evaluation.metrics import Score, mean_score
from wan_vae.io.color import eight_bits, over_black
from wan_vae.io.frames import Frames
from wan_vae.report.latents import HISTOGRAM_RANGE, RANGE, LatentSummary
from wan_vae.report.pictures import MOST_BYTES, PictureFile, PicturePlan
from wan_vae.report.plots import HEIGHT, WIDTH, Plot, bars, line_plot, shown_value

WORST = 8
"""Frames of each reconstruction that the page lists as its worst."""

_METRICS = {"psnr": ("PSNR", "dB", 4), "ssim": ("SSIM", "", 6), "lpips": ("LPIPS", "", 6)}  # name, unit, digits
_LATENT_SHARE = 8  # latents get this part of the bytes
_FOLDER = Path(__file__).parent


@cache
def style_and_script() -> tuple[str, str]:
    """Return the page's CSS and JavaScript."""
    css, script = ((_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return css, script


def check_page(path: Path) -> None:
    """Refuse a name that browsers would not open as a page."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"The report is {path}, but it is a web page; name a file that ends in .html.")


class Report:
    """One or more reconstructions of a clip, of the clip's size. A context manager that removes its temporary files.

    Pictures lie on disk until the page is written; of the frames, memory holds only the metrics. Pictures are drawn
    with square pixels, and those with alpha over black. The error of a pixel is the mean absolute difference of its
    channels.

    Args:
        title: Name of the clip.
        frames: Length of the clip.
        width: Of its frames, in pixels.
        height: Of its frames, in pixels.
        fps: Its rate.
        names: Of the reconstructions, all different.
        most_bytes: Of the pictures. Large pictures are shown smaller; of long clips, only every so many frames is.
    """

    def __init__(
        self,
        title: str,
        frames: int,
        width: int,
        height: int,
        fps: Fraction,
        names: Sequence[str],
        *,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._title, self._frames, self._size, self._fps = title, frames, (width, height), fps
        self._names = [printable(name) for name in names]
        self._scores: list[list[Score]] = [[] for _ in names]
        per_frame, self._latent_bytes = 1 + 2 * len(names), most_bytes // _LATENT_SHARE
        frame_bytes = most_bytes - self._latent_bytes
        self._plan = PicturePlan.of(frames, width, height, per_frame, frame_bytes)
        shown = -(-frames // self._plan.step) + (WORST if self._plan.step > 1 else 0)
        self._stack = ExitStack()
        lossless = self._plan.lossless
        self._pictures = self._stack.enter_context(PictureFile(shown * per_frame, frame_bytes, lossless=lossless))
        self._shown: set[int] = set()
        # The worst frames so far, the best of them first: PSNR with its sign changed, frame, and its pictures, encoded,
        # where the plan leaves them out.
        self._worst: list[tuple[float, int, dict[str, bytes]]] = []
        self._latents: dict[int, _Latents] = {}

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def add(self, reconstruction: int, source: Frames, decoded: Frames, score: Score) -> None:
        """Add the next frame of a reconstruction by its number; frames are (h, w, 3 or 4), full-range."""
        scores = self._scores[reconstruction]
        frame = len(scores)
        scores.append(score)
        planned = frame % self._plan.step == 0
        # With several reconstructions, frames beyond the plan would lack the pictures of the others.
        among_worst = len(self._names) == 1 and (len(self._worst) < WORST or -score.psnr > self._worst[0][0])
        if not planned and not among_worst:
            return
        pictures = self._encoded(reconstruction, frame, eight_bits(source), eight_bits(decoded))
        if planned:
            self._keep(frame, pictures)
            pictures = {}
        if among_worst:
            heapq.heappush(self._worst, (-score.psnr, frame, pictures))
            if len(self._worst) > WORST:
                heapq.heappop(self._worst)

    def add_latents(self, reconstruction: int, latents: Tensor, temporal_compression: int) -> None:
        """Add the next normalized latents (1, z, n, h, w) of a reconstruction."""
        if reconstruction not in self._latents:
            count = 1 + -(-(self._frames - 1) // temporal_compression)
            channels, height, width = latents.shape[1], *latents.shape[3:]
            most_bytes = self._latent_bytes // len(self._names)
            file = PictureFile(count, most_bytes, lossless=self._plan.lossless)
            summary = LatentSummary(channels, width, height, 2 * most_bytes / count)
            self._latents[reconstruction] = _Latents(temporal_compression, summary, self._stack.enter_context(file))
        self._latents[reconstruction].add(reconstruction, latents.detach().cpu(), self._frames, self._plan.step)

    def write(self, path: Path, clip: Mapping[str, object], models: Sequence[Mapping[str, object]], note: str) -> None:
        """Write the page.

        Args:
            path: The file.
            clip: What the page says about the clip and the run, by name.
            models: And about each reconstruction.
            note: What was compared, a sentence.
        """
        # Only those who write pages wait for the import.
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        for _, frame, pictures in self._worst:
            if pictures:
                self._keep(frame, pictures)
        css, script = style_and_script()
        environment = Environment(autoescape=True, loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined)
        rows = list(dict.fromkeys(name for facts in models for name in facts))
        content = environment.get_template("page.html").stream(
            title=printable(self._title),
            names=self._names,
            frames=len(self._scores[0]),
            size=f"{self._size[0]} x {self._size[1]}",
            fps=f"{float(self._fps):.6g}",
            css=css,
            css_source=source_of(css),
            script=script,
            script_source=source_of(script),
            cards=[self._card(scores) for scores in self._scores],
            notes=[note, *self._notes()],
            plots=self._plots(),
            plot_size=(WIDTH, HEIGHT),
            worst=[self._worst_of(scores) for scores in self._scores],
            heat=["#" + bytes(int(level) for level in stop).hex() for stop in HEAT_STOPS],
            most_error=f"{255 / GAIN:.0f}",
            latents=self._latent_cards(),
            latent_range=(RANGE, HISTOGRAM_RANGE),
            clip={name: printable(value) for name, value in clip.items()},
            models=[(name, [printable(facts.get(name, "")) for facts in models]) for name in rows],
            pictures=[*self._pictures.texts(), *(text for one in self._latents.values() for text in one.file.texts())],
            data=self._data(),
        )
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(content)

    def _encoded(
        self, reconstruction: int, frame: int, source: NDArray[np.uint8], decoded: NDArray[np.uint8]
    ) -> dict[str, bytes]:
        size = self._plan.width, self._plan.height
        pictures = {f"e{reconstruction}-{frame}": error_picture(source, decoded)}
        if source.shape[2] == 4:
            source, decoded = over_black(source), over_black(decoded)
        pictures[f"r{reconstruction}-{frame}"] = decoded
        if reconstruction == 0:
            pictures[f"s{frame}"] = source
        return {
            # Errors look like noise, of which compression leaves out nothing that could be seen.
            name: self._pictures.encode(picture, *size, quality=75 if name.startswith("e") else 90)
            for name, picture in pictures.items()
        }

    def _keep(self, frame: int, pictures: dict[str, bytes]) -> None:
        self._shown.add(frame)
        for name, content in pictures.items():
            self._pictures.write(name, content)

    def _card(self, scores: list[Score]) -> list[tuple[str, str]]:
        mean = mean_score(scores)
        found = [(name, unit, getattr(mean, key)) for key, (name, unit, _) in _METRICS.items()]
        card = [(name, shown_value(value, unit)) for name, unit, value in found if value is not None]
        return [*card, ("worst frame", shown_value(min(score.psnr for score in scores), "dB"))]

    def _notes(self) -> list[str]:
        plan, notes = self._plan, []
        if plan.lossless:
            notes.append("Pictures are exact.")
        elif (plan.width, plan.height) == self._size:
            notes.append("Pictures are compressed; figures are of the uncompressed ones.")
        else:
            notes.append(
                f"Pictures are compressed and scaled to {plan.width} x {plan.height}, to keep the page small; figures"
                " are of the uncompressed ones at full size."
            )
        if plan.step > 1:
            worst = ", and the worst frames," if len(self._names) == 1 else ""
            notes.append(f"One frame in {plan.step}{worst} can be looked at; plots are of all frames.")
        return notes

    def _plots(self) -> list[Plot]:
        plots = []
        for key, (name, unit, _) in _METRICS.items():
            values = [[getattr(score, key) for score in scores] for scores in self._scores]
            if all(value is not None for series in values for value in series):
                plots.append(line_plot(name, unit, dict(zip(self._names, values, strict=True))))
        return plots

    def _worst_of(self, scores: list[Score]) -> list[tuple[int, str]]:
        frames = sorted(range(len(scores)), key=lambda frame: scores[frame].psnr)[:WORST]
        return [(frame, shown_value(scores[frame].psnr, "dB")) for frame in frames if scores[frame].psnr < math.inf]

    def _latent_cards(self) -> list[tuple[str, list[tuple[int, str, str]]]]:
        """Return for each reconstruction with latents: its name, and of each channel number, figures and histogram."""
        cards = []
        for reconstruction, one in self._latents.items():
            channels = [
                (number, f"mean {channel.mean:.2f}, std {channel.std:.2f}", bars(channel.counts))
                for number, channel in enumerate(one.summary.statistics())
            ]
            cards.append((self._names[reconstruction], channels))
        return cards

    def _data(self) -> dict[str, Any]:
        """Return what the script needs, as JSON types; JSON has no infinity, and null stands for it."""
        values = [
            {
                name: [_finite(getattr(score, key), digits) for score in scores]
                for key, (name, _, digits) in _METRICS.items()
                if getattr(scores[0], key) is not None
            }
            for scores in self._scores
        ]
        latents = [
            {
                "reconstruction": reconstruction,
                "compression": one.compression,
                "columns": one.summary.columns,
                "rows": one.summary.rows,
                "cell": one.summary.cell,
                "shown": one.shown,
            }
            for reconstruction, one in self._latents.items()
        ]
        return {
            "frames": len(self._scores[0]),
            "fps": float(self._fps),
            "width": self._size[0],
            "height": self._size[1],
            "shown": sorted(self._shown),
            "names": self._names,
            "values": values,
            "latents": latents,
        }


class _Latents:
    """The latents of one reconstruction."""

    def __init__(self, compression: int, summary: LatentSummary, file: PictureFile) -> None:
        self.compression, self.summary, self.file = compression, summary, file
        self.shown: list[int] = []
        self._count = 0

    def add(self, reconstruction: int, latents: Tensor, frames: int, step: int) -> None:
        self.summary.add(latents)
        columns, rows = self.summary.columns, self.summary.rows
        width, height = self.summary.cell
        for latent in latents[0].unbind(dim=1):
            after = self._count * self.compression + 1  # the frame after those that the latent stands for
            if (min(after, frames) - 1) // step * step >= after - self.compression:
                picture = self.file.encode(self.summary.picture(latent), columns * width, rows * height)
                self.file.write(f"l{reconstruction}-{self._count}", picture)
                self.shown.append(self._count)
            self._count += 1


def _finite(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def source_of(text: str) -> str:
    """Return what a Content-Security-Policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
