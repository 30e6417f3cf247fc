"""Line charts and histograms as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 34
BINS = 40
# If the maximum exceeds TAIL_FACTOR times the (1 - TAIL) quantile, the last bar counts all values above that quantile.
TAIL, TAIL_FACTOR = 0.005, 2


class Line(TypedDict):
    """One series of a line chart.

    Attributes:
        name: Name of the series.
        path: SVG path data.
        dots: x, y and tooltip of each point; empty for series of many points.
    """

    name: str
    path: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Layout of a line chart in pixels, for the macro `chart` of `macros.html.jinja`.

    Attributes:
        lines: Name, SVG path and dots of each series.
        x_ticks: Position and label of each tick of the x axis.
        y_ticks: Position and label of each tick of the y axis.
        x_label: Label of the x axis.
        description: Text alternative for screen readers.
    """

    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    description: str


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, description: str) -> Chart:
    """Computes the layout of a line chart.

    Args:
        series: Points (x, y) by name; points that are not finite are skipped.
        x_label: Label of the x axis.
        description: Text alternative for screen readers.

    Returns:
        The chart; without lines if there are no points.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    points = [point for line in finite.values() for point in line]
    if not points:
        return Chart([], [], [], x_label, description)
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))

    def across(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    lines: list[Line] = [
        {
            "name": name,
            "path": "M" + " L".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line),
            "dots": [(across(x), down(y), f"{name} at {x:g}: {y:.4g}") for x, y in line] if len(line) <= 60 else [],
        }
        for name, line in finite.items()
        if line
    ]
    return Chart(
        lines,
        [(across(x), f"{x:g}") for x in x_ticks],
        [(down(y), f"{y:g}") for y in y_ticks],
        x_label,
        description,
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round tick values that include a range; steps are 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class Bar(TypedDict):
    """One bar of a histogram: its place in per cent, and the tooltip."""

    x: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Layout of a histogram in per cent of its box, for the macro `histogram` of `macros.html.jinja`.

    Attributes:
        bars: One bar per bin.
        minimum: Smallest value.
        maximum: Largest value.
        median: Median.
        overflow_start: First value of the last bar if that bar counts all larger values, else 0.
        highest: Rows in the highest bar.
        rows: Total rows.
        unit: Unit of the values, plural.
    """

    bars: list[Bar]
    minimum: int
    maximum: int
    median: int
    overflow_start: int
    highest: int
    rows: int
    unit: str


def histogram(counts: np.ndarray, unit: str) -> Histogram:
    """Computes the layout of a histogram of row sizes.

    Args:
        counts: Number of rows per size, shape [largest size + 1].
        unit: Unit of the sizes, plural, such as `characters`.

    Returns:
        The histogram; without bars if there are no rows.
    """
    present = np.flatnonzero(counts)
    if not len(present):
        return Histogram([], 0, 0, 0, 0, 0, 0, unit)
    minimum, maximum = int(present[0]), int(present[-1])
    cumulative = np.cumsum(counts)
    rows = int(cumulative[-1])
    median, quantile = (int(np.searchsorted(cumulative, share * rows)) for share in (0.5, 1 - TAIL))
    limit = quantile if maximum > TAIL_FACTOR * max(quantile, 1) else maximum
    width = max(1, -(-(limit - minimum + 1) // BINS))
    edges = np.append(np.arange(minimum, limit + 1, width), [limit + 1] if limit < maximum else []).astype(np.int64)
    sizes = np.add.reduceat(counts[: maximum + 1], edges).tolist()
    bars: list[Bar] = []
    for i, (edge, size) in enumerate(zip(edges.tolist(), sizes, strict=True)):
        end = int(edges[i + 1]) - 1 if i + 1 < len(sizes) else maximum
        bars.append(
            {
                "x": 100 * i / len(sizes),
                "width": 90 / len(sizes),
                "height": 100 * size / max(sizes),
                "label": f"{edge:,} to {end:,} {unit}: {size:,} rows",
            }
        )
    overflow_start = int(edges[-1]) if limit < maximum else 0
    return Histogram(bars, minimum, maximum, median, overflow_start, max(sizes), rows, unit)
