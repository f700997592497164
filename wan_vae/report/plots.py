"""Line plots and histograms as the numbers of an SVG, which the page's template draws.

Charting libraries would add one to four megabytes of script to every page, or a package to install; the page needs two
kinds of plots, in its own colors, and a click that it has to translate to a frame in any case.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 1000, 200
"""Size of the coordinate system of a plot; the page stretches it."""

_MOST_POINTS = 1000  # pairs of a lowest and a highest value
_TICKS = 4


@dataclass(frozen=True)
class Plot:
    """Values by frame.

    Attributes:
        name: What is plotted, which is also that of the attribute of `Score`, in capitals.
        unit: Of the values; "" for none.
        lines: Points of each line as an SVG polyline takes them, by name.
        ticks: Height in the plot, from 0 at the top to 100 at the bottom, and value of each line of the grid.
        summary: The plot in words.
    """

    name: str
    unit: str
    lines: dict[str, str]
    ticks: list[tuple[float, str]]
    summary: str


def line_plot(name: str, unit: str, series: Mapping[str, Sequence[float]]) -> Plot:
    """Plot one or more series of values of one length; infinite ones are drawn at the upper edge."""
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    ticks = nice_ticks(min(finite), max(finite)) if finite else [0.0, 1.0]
    low, high = ticks[0], ticks[-1]
    places = [(100 * (high - tick) / (high - low), f"{tick:.12g}") for tick in ticks]
    lines = {key: _points([min(value, high) for value in values], low, high) for key, values in series.items()}
    return Plot(name, unit, lines, places, "; ".join(_summary(name, unit, *item) for item in series.items()))


def nice_ticks(low: float, high: float) -> list[float]:
    """Return two or more round numbers at even distances, from one that is at most `low` to one at least `high`."""
    least = 1e-6 * max(1.0, abs(high))  # ticks have ten digits or so
    rough = max(high - low, least) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def bars(counts: Sequence[float]) -> str:
    """Return the outline of a histogram as an SVG polygon takes it: one unit wide a bar, 100 units high."""
    most = max(counts) or 1
    corners = [f"{place},{100 - 100 * count / most:.4g}" for x, count in enumerate(counts) for place in (x, x + 1)]
    return " ".join(["0,100", *corners, f"{len(counts)},100"])


def _points(values: Sequence[float], low: float, high: float) -> str:
    scale = WIDTH / max(1, len(values) - 1)
    places = range(len(values))
    if len(values) > 2 * _MOST_POINTS:
        # The extremes of each stretch: a single bad frame is still to be seen.
        size = -(-len(values) // _MOST_POINTS)
        stretches = (range(first, min(first + size, len(values))) for first in range(0, len(values), size))
        extremes = ((min(part, key=values.__getitem__), max(part, key=values.__getitem__)) for part in stretches)
        chosen: Any = (place for pair in extremes for place in sorted(set(pair)))
    else:
        chosen = places
    points = [(place * scale, HEIGHT * (high - values[place]) / (high - low)) for place in chosen]
    if len(points) == 1:
        points.append((WIDTH, points[0][1]))
    return " ".join(f"{x:.5g},{y:.5g}" for x, y in points)


def _summary(name: str, unit: str, series: str, values: Sequence[float]) -> str:
    lowest, highest = (choose(range(len(values)), key=values.__getitem__) for choose in (min, max))
    low, high = (shown_value(values[place], unit) for place in (lowest, highest))
    return f"{name} of {series}, by frame: from {low} in frame {lowest} to {high} in frame {highest}"


def shown_value(value: float, unit: str) -> str:
    """Return a metric with its unit, such as "26.31 dB" or "0.8421"."""
    if math.isinf(value):
        return "identical"
    return f"{value:.2f} {unit}" if unit else f"{value:.4f}"
