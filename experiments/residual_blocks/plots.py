"""An ablation as pictures."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from experiments.residual_blocks.probes import BlockProbe
from experiments.residual_blocks.study import Entry, Study
from experiments.residual_blocks.training import TrainingResult

# Okabe and Ito's palette, which the color-blind can tell apart; dashes and markers do so without color.
_STYLES = {
    "wan": ("#0072B2", "-", "o"),
    "resnet": ("#D55E00", "-", "s"),
    "bottleneck": ("#009E73", "-.", "^"),
    "preact": ("#CC79A7", "-", "D"),
    "dense": ("#E69F00", "--", "v"),
    "plain": ("#000000", ":", "X"),
}
_DOTS_PER_INCH = 100
_COLORS = 128
Probe = Callable[[BlockProbe], float | None]


def draw_all(study: Study) -> dict[str, Figure]:
    """Return the pictures by name."""
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}):
        return {
            "psnr": _psnr(study),
            "gradient": _gradient(study),
            "identity_distance": _identity_distance(study),
            "efficiency": _efficiency(study),
            "identity": _identity(study),
        }


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH)
    # A palette is enough for lines and bands, and takes a third of the space.
    Image.open(drawn).convert("RGB").quantize(_COLORS).save(path, format="PNG", optimize=True)


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
                    [block.gradient / blocks_of(result)[-1].gradient for block in blocks_of(result)]
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
    figure, axes = _panels(1, 3)
    costs: tuple[tuple[str, Callable[[Entry], float]], ...] = (
        ("parameters, thousands", lambda entry: entry.cost.parameters / 1e3),
        ("multiply-adds for a clip, millions", lambda entry: entry.cost.multiply_adds / 1e6),
        ("training step, ms", lambda entry: 1000 * entry.step_seconds),
    )
    for panel, (name, cost_of) in zip(axes[0], costs, strict=True):
        for kind, entries in study.by_depth.items():
            color, line, marker = _STYLES[kind]
            _dots(panel, entries, cost_of, color=color, linestyle=line, marker=marker, label=kind)
            matched = [by_kind[kind] for by_kind in study.at_equal.values()]
            _dots(panel, matched, cost_of, color=color, linestyle="", marker=marker, markerfacecolor="white")
        panel.set(xscale="log", xlabel=name)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("final validation PSNR, dB")
    axes[0][1].set_title("three depths of equal width (filled), middle depth at equal cost (hollow)")
    return _with_legend(figure, axes[0][0])


def _identity(study: Study) -> Figure:
    figure, axes = _panels(1, 1)
    panel = axes[0][0]
    for place, (kind, results) in enumerate(study.identity.items()):
        color, _, marker = _STYLES[kind]
        start, end = [result.start for result in results], [result.end for result in results]
        panel.plot([place] * len(start), start, marker, color=color, markerfacecolor="white", alpha=0.8)
        panel.plot([place] * len(end), end, marker, color=color, alpha=0.8)
    panel.set(yscale="log", xticks=range(len(study.identity)), xticklabels=list(study.identity))
    panel.set(
        ylabel="relative error",
        title="blocks taught to pass on their input: before (hollow), after (filled), each seed",
    )
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    # No pyplot: it would look for a display, and keep every figure alive.
    figure = Figure(figsize=(9.5, 0.7 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row")
    return figure, [list(row) for row in axes]


def _band(panel: Axes, kind: str, x: Sequence[int], curves: Sequence[Sequence[float]]) -> None:
    color, line, _ = _STYLES[kind]
    values = np.array(curves)
    panel.plot(x, values.mean(axis=0), color=color, linestyle=line, linewidth=1.5, label=kind)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)


def _dots(panel: Axes, entries: Sequence[Entry], cost_of: Callable[[Entry], float], **style: str) -> None:
    psnr = np.array([entry.final_psnr for entry in entries])
    middle = psnr.mean(axis=1)
    around = np.stack([middle - psnr.min(axis=1), psnr.max(axis=1) - middle])
    panel.errorbar([cost_of(entry) for entry in entries], middle, yerr=around, capsize=2, markersize=5, **style)  # type: ignore[arg-type]


def _title(study: Study, depth: int) -> str:
    return f"blocks per level: {study.by_depth['plain'][depth].network.blocks_per_level}"


def _with_legend(figure: Figure, panel: Axes) -> Figure:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
