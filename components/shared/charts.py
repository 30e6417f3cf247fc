"""Line charts as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 34


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
