"""Line charts and histograms as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 34
BINS = 40
# A few values beyond so many times the range of nearly all others share the last bar, or they would flatten the rest.
TAIL, TAIL_FACTOR = 0.005, 2


@dataclass(frozen=True)
class Chart:
    """A chart laid out in pixels, for the `chart` macro of `macros.html.jinja`.

    Attributes:
        lines: Per series its `name`, `path` (SVG path data) and `dots` (x, y and what the dot says).
        x_ticks: Position and label of each mark on the x axis.
        y_ticks: The same on the y axis.
        x_label: What the x axis measures.
        description: The chart in words, for screen readers.
    """

    lines: list[dict[str, Any]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_label: str
    description: str


def line_chart(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, description: str) -> Chart:
    """Lays out a line chart.

    Args:
        series: Points (x, y) by name; points that are not finite are left out.
        x_label: What the x axis measures.
        description: The chart in words.

    Returns:
        The chart, or one without lines if there is no point.
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

    lines = [
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
    """Returns round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Histogram:
    """A histogram laid out in per cent of its box, for the `histogram` macro of `macros.html.jinja`.

    Attributes:
        bars: Per bin its `x`, `width` and `height`, and the `label` that says what it counts.
        least: The smallest value.
        most: The largest value.
        middle: The median.
        last: Where the last bar begins if it holds all larger values, else 0.
        highest: Rows in the highest bar.
        rows: Rows in all.
        unit: What is measured, plural.
    """

    bars: list[dict[str, Any]]
    least: int
    most: int
    middle: int
    last: int
    highest: int
    rows: int
    unit: str


def histogram(counts: np.ndarray, unit: str) -> Histogram:
    """Lays out how many rows have which size.

    Args:
        counts: Number of rows per size, shape [largest size + 1].
        unit: What is measured, plural, such as `characters`.

    Returns:
        The histogram; without bars if there is no row.
    """
    present = np.flatnonzero(counts)
    if not len(present):
        return Histogram([], 0, 0, 0, 0, 0, 0, unit)
    least, most = int(present[0]), int(present[-1])
    below = np.cumsum(counts)
    rows = int(below[-1])
    middle, usual = (int(np.searchsorted(below, share * rows)) for share in (0.5, 1 - TAIL))
    limit = usual if most > TAIL_FACTOR * max(usual, 1) else most
    width = max(1, -(-(limit - least + 1) // BINS))
    edges = np.append(np.arange(least, limit + 1, width), [limit + 1] if limit < most else []).astype(np.int64)
    sizes = np.add.reduceat(counts[: most + 1], edges).tolist()
    bars = []
    for i, (edge, size) in enumerate(zip(edges.tolist(), sizes, strict=True)):
        end = int(edges[i + 1]) - 1 if i + 1 < len(sizes) else most
        drawn = {"x": 100 * i / len(sizes), "width": 90 / len(sizes), "height": 100 * size / max(sizes)}
        bars.append(drawn | {"label": f"{edge:,} to {end:,} {unit}: {size:,} rows"})
    return Histogram(bars, least, most, middle, int(edges[-1]) if limit < most else 0, max(sizes), rows, unit)
