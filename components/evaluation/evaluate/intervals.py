"""Paired bootstrap: 95 % intervals of ratios of sums over rows, and of their differences."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
DRAWS_AT_ONCE = 4_000_000
"""Bounds the memory of the resampling, whatever the number of rows."""


@dataclass(frozen=True)
class Ratio:
    """A figure that is a sum over rows divided by another.

    Attributes:
        above: Numerator per row.
        below: Denominator per row; all ones for a mean.
        empty: The value where nothing is below.
    """

    above: np.ndarray
    below: np.ndarray
    empty: float = 0.0

    @property
    def value(self) -> float:
        """The figure."""
        return float(self.of(np.ones((1, len(self.above)), np.float64))[0])

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Returns the figure when rows count as often as `weights` [resamples, rows] says."""
        above, below = weights @ self.above, weights @ self.below
        return np.divide(above, below, out=np.full(len(above), self.empty), where=below > 0)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval.

    Attributes:
        low: 2.5 % quantile.
        high: 97.5 % quantile.
    """

    low: float
    high: float


def intervals(
    figures: Mapping[str, Ratio], differences: Mapping[str, tuple[str, str]], seed: int
) -> dict[str, Interval]:
    """Draws rows anew with replacement, the same rows for every figure.

    Args:
        figures: Figures over the same rows, by name.
        differences: Names of differences: the figure that is subtracted from, and the one subtracted.
        seed: Seed of the draws.

    Returns:
        The interval of each figure and each difference.
    """
    rows = len(next(iter(figures.values())).above)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in figures}
    at_once = max(1, min(RESAMPLES, DRAWS_AT_ONCE // rows))
    for first in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - first)
        picks = generator.integers(0, rows, (count, rows))
        weights = np.stack([np.bincount(pick, minlength=rows) for pick in picks]).astype(np.float64)
        for name, figure in figures.items():
            drawn[name].append(figure.of(weights))
    samples = {name: np.concatenate(parts) for name, parts in drawn.items()}
    samples |= {name: samples[first] - samples[second] for name, (first, second) in differences.items()}
    return {name: Interval(*map(float, np.quantile(values, (0.025, 0.975)))) for name, values in samples.items()}
