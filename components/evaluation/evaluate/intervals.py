"""Paired bootstrap: 95 % confidence intervals of ratios of sums over rows, and of their differences."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

RESAMPLES = 2000
DRAWS_PER_BATCH = 4_000_000
"""Row indices that are in memory at a time: 32 MB, and as much again for their counts."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A metric that is a sum over rows divided by another.

    Attributes:
        numerator: Value per row.
        denominator: Weight per row; all ones for a mean.
        default: Value of the metric if the denominators sum to 0.
    """

    numerator: Floats
    denominator: Floats
    default: float = 0.0

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.weighted(np.ones((1, len(self.numerator)), np.float64))[0])

    def weighted(self, counts: Floats) -> Floats:
        """Returns the metric of each resample.

        Args:
            counts: How often each row was drawn, shape [resamples, rows].
        """
        above, below = counts @ self.numerator, counts @ self.denominator
        result: Floats = np.divide(above, below, out=np.full(len(above), self.default), where=below > 0)
        return result


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval.

    Attributes:
        low: 2.5 % quantile.
        high: 97.5 % quantile.
    """

    low: float
    high: float


def bootstrap_intervals(
    ratios: Mapping[str, Ratio], differences: Mapping[str, tuple[str, str]], seed: int
) -> dict[str, Interval]:
    """Computes percentile bootstrap intervals; every metric is computed on the same resamples.

    Args:
        ratios: Metrics over the same rows, by name.
        differences: Minuend and subtrahend, both names of `ratios`, by name of the difference.
        seed: Random seed.

    Returns:
        The interval of each metric and each difference.
    """
    rows = len(next(iter(ratios.values())).numerator)

    def metrics(resamples: NDArray[np.int64], axis: int = -1) -> Floats:
        # Counts and a matrix product instead of gathered rows: four times as fast with 10,000 rows and 27 metrics.
        counts = np.stack([np.bincount(indices, minlength=rows) for indices in resamples]).astype(np.float64)
        values = {name: ratio.weighted(counts) for name, ratio in ratios.items()}
        values |= {name: values[first] - values[second] for name, (first, second) in differences.items()}
        return np.stack(list(values.values()))

    if rows == 1:  # bootstrap() requires two observations; all resamples of one row are the same
        lows = highs = metrics(np.zeros((1, 1), np.int64))[:, 0]
    else:
        lows, highs = bootstrap(
            (np.arange(rows),),
            metrics,
            n_resamples=RESAMPLES,
            batch=max(1, DRAWS_PER_BATCH // rows),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    names = [*ratios, *differences]
    return {name: Interval(float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}
