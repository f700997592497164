"""An ablation as pictures."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from experiments.residual_blocks.probes import BlockProbe
from experiments.residual_blocks.settings import Kind
from experiments.residual_blocks.study import STANDARD, Entry, Study
from experiments.residual_blocks.training import TrainingResult

# Okabe and Ito's palette, which the color-blind can tell apart; dashes and markers do so without color.
_STYLES: dict[Kind, tuple[str, str, str]] = {
    "wan": ("#0072B2", "-", "o"),
    "resnet": ("#D55E00", "-", "s"),
    "bottleneck": ("#009E73", "-.", "^"),
    "preact": ("#CC79A7", "-", "D"),
    "dense": ("#E69F00", "--", "v"),
    "plain": ("#000000", ":", "X"),
}
_DOTS_PER_INCH = 100
_COLORS = 256
Probe = Callable[[BlockProbe], float | None]


def draw_all(study: Study) -> dict[str, Figure]:
    """Return the pictures by name."""
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}):
        return {
            "psnr": _psnr(study),
            "gradient": _gradient(study),
            "identity_distance": _identity_distance(study),
            "efficiency": _efficiency(study),
            "choices": _choices(study),
        }


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH)
    # A palette is enough for lines and bands, and takes a third of the space; an octree keeps colors of few pixels.
    image = Image.open(drawn).convert("RGB").quantize(_COLORS, Image.Quantize.FASTOCTREE)
    image.save(path, format="PNG", optimize=True)


def _psnr(study: Study) -> Figure:
    figure, axes = _panels(1, 3)
    for column, panel in enumerate(axes[0]):
        for kind, entries in study.by_depth.items():
            results = entries[column].results
            _band(panel, kind, results[0].steps, [result.psnr for result in results])
        panel.axhline(study.constant_psnr, color="gray", linewidth=1, label="mean color")
        panel.set(title=_title(study, column), xlabel="training step")
    axes[0][0].set_ylabel("validation PSNR, dB")
    return _with_legend(figure, axes[0][0])


def _gradient(study: Study) -> Figure:
    figure, axes = _panels(2, 3)
    moments: tuple[tuple[str, Callable[[TrainingResult], Sequence[BlockProbe]]], ...] = (
        ("at initialization", lambda result: result.start),
        ("after training", lambda result: result.end),
    )
    for (moment, blocks_of), row in zip(moments, axes, strict=True):
        for column, panel in enumerate(row):
            for kind, entries in study.by_depth.items():
                curves = [
                    [block.gradient / (blocks_of(result)[-1].gradient or float("nan")) for block in blocks_of(result)]
                    for result in entries[column].results
                ]
                _band(panel, kind, range(1, len(curves[0]) + 1), curves)
            panel.set(yscale="log", title=_title(study, column), xlabel="block, from the input to the output")
        row[0].set_ylabel(f"gradient relative to the\nlast block's, {moment}")
    return _with_legend(figure, axes[0][0])


def _identity_distance(study: Study) -> Figure:
    figure, axes = _panels(1, 2)
    for panel, moment in zip(axes[0], ("at initialization", "after training"), strict=True):
        for kind, entries in study.by_depth.items():
            probes = [result.start if moment == "at initialization" else result.end for result in entries[-1].results]
            curves = [
                [float("nan") if block.identity_distance is None else block.identity_distance for block in blocks]
                for blocks in probes
            ]
            _band(panel, kind, range(1, len(curves[0]) + 1), curves)
        panel.set(yscale="log", title=f"{_title(study, -1)}, {moment}", xlabel="block, from the input to the output")
    axes[0][0].set_ylabel("distance from the identity\n(branch relative to shortcut)")
    return _with_legend(figure, axes[0][0])


def _efficiency(study: Study) -> Figure:
    figure, axes = _panels(2, 3)
    costs: tuple[tuple[str, Callable[[Entry], list[float]]], ...] = (
        (
            "CPU seconds",
            lambda entry: [mean(times) for times in zip(*(one.seconds for one in entry.results), strict=True)],
        ),
        (
            "10^9 multiply-adds",
            lambda entry: [step * entry.multiply_adds_per_step / 1e9 for step in entry.results[0].steps],
        ),
    )
    for (name, spent), row in zip(costs, axes, strict=True):
        for column, panel in enumerate(row):
            for kind in study.small_set:
                entry = study.by_depth[kind][column]
                _band(panel, kind, spent(entry), [result.psnr for result in entry.results])
            if column == len(row) - 1:
                curves = [result.psnr for result in study.narrow.results]
                _band(panel, study.narrow.network.kind, spent(study.narrow), curves, label="bottleneck, equal width")
            panel.set(xscale="log", title=_title(study, column), xlabel=name)
            panel.xaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel("validation PSNR, dB")
    return _with_legend(figure, axes[0][-1])


def _choices(study: Study) -> Figure:
    figure, axes = _panels(2, 2, share="none")
    (rates, small), (reuse, identity) = axes
    for kind, by_rate in study.by_rate.items():
        curves = np.array([entry.final_psnr for entry in by_rate.values()]).T
        _band(rates, kind, list(by_rate), curves.tolist())
    rates.set(xscale="log", title=f"{_title(study, 1)}: pre-activation for stability", xlabel="learning rate")
    tried = list(study.by_rate[STANDARD])
    rates.set_xticks(tried, [f"{rate:g}" for rate in tried])
    rates.set_xticks([], minor=True)
    rates.legend(frameon=False)
    for panel in (rates, small):
        panel.axhline(study.constant_psnr, color="gray", linewidth=1)
        panel.set_ylabel("final validation PSNR, dB")
    few = {kind: entry.final_psnr for kind, entry in study.small_set.items()}
    new = {kind: study.by_depth[kind][1].final_psnr for kind in few}
    _pairs(small, few, new, f"{_title(study, 1)}: few pictures (hollow), many (filled)")
    ends = {task: {kind: [one.end for one in found] for kind, found in by.items()} for task, by in study.stacks.items()}
    _pairs(reuse, ends["every"], ends["last"], "chain of functions: all (hollow), the last (filled)")
    starts = {kind: [one.start for one in found] for kind, found in study.stacks["identity"].items()}
    _pairs(identity, starts, ends["identity"], "the identity: before (hollow), after (filled)")
    for panel in (reuse, identity):
        panel.set(ylabel="relative error", yscale="log")
    return figure


def _pairs(
    panel: Axes, hollow: Mapping[Kind, Sequence[float]], filled: Mapping[Kind, Sequence[float]], title: str
) -> None:
    for place, kind in enumerate(hollow):
        color, _, marker = _STYLES[kind]
        for side, values, face in ((-0.15, hollow[kind], "white"), (0.15, filled[kind], color)):
            panel.plot([place + side] * len(values), values, marker, color=color, markerfacecolor=face, alpha=0.8)
    panel.set(title=title, xticks=range(len(hollow)), xticklabels=list(hollow))


def _panels(rows: int, columns: int, share: Literal["row", "none"] = "row") -> tuple[Figure, list[list[Axes]]]:
    # No pyplot: it would look for a display, and keep every figure alive.
    figure = Figure(figsize=(9.5, 0.7 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share)
    return figure, [list(row) for row in axes]


def _band(
    panel: Axes, kind: Kind, x: Sequence[float], curves: Sequence[Sequence[float]], label: str | None = None
) -> None:
    color, line, _ = _STYLES[kind]
    values = np.array(curves)
    style = {"linestyle": line} if label is None else {"linestyle": (0, (1, 1)), "alpha": 0.6}
    panel.plot(x, values.mean(axis=0), color=color, linewidth=1.5, label=label or kind, **style)
    panel.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)


def _title(study: Study, depth: int) -> str:
    return f"{study.by_depth['plain'][depth].network.layers} layers"


def _with_legend(figure: Figure, panel: Axes) -> Figure:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
