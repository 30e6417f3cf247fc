"""Metrics of base and tuned model on the same rows, with confidence intervals, overall and by slice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_finetune.components.evaluation.evaluate.intervals import Interval, Ratio, bootstrap_intervals
from llm_finetune.components.evaluation.evaluate.loss import MODELS, Losses
from llm_finetune.components.evaluation.evaluate.rows import Indices
from llm_finetune.components.evaluation.evaluate.scores import Scores, aggregate

MIN_SLICE_ROWS = 10
"""Smaller slices are shown, but are not considered for the worst slice: their differences are mostly noise."""
MAX_SLICES = 20
MAX_EXPONENT = 700.0
"""exp() of larger values overflows a float."""

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Slice:
    """Losses of a subset of the rows.

    Attributes:
        by: Property that defines the subset, such as `length`.
        name: Value of the property.
        rows: Number of rows.
        tokens: Number of completion tokens.
        base_loss: Loss of the base model, in nats per completion token.
        tuned_loss: Loss of the tuned model.
        delta: Tuned minus base.
        low: Lower bound of the difference's 95 % interval.
        high: Upper bound.
    """

    by: str
    name: str
    rows: int
    tokens: int
    base_loss: float
    tuned_loss: float
    delta: float
    low: float
    high: float


def loss_metrics(losses: Losses, seed: int) -> Metrics:
    """Returns losses, perplexities, and the difference in loss with its 95 % interval."""
    base, tuned, interval = _compare(losses, np.arange(len(losses.rows)), seed)
    return {
        "base_loss": base,
        "tuned_loss": tuned,
        "loss_delta": tuned - base,
        "loss_delta_ci_low": interval.low,
        "loss_delta_ci_high": interval.high,
        "base_perplexity": math.exp(min(base, MAX_EXPONENT)),
        "tuned_perplexity": math.exp(min(tuned, MAX_EXPONENT)),
        "samples_used": len(losses.rows),
        "completion_tokens": int(losses.tokens.sum()),
    }


def compare_slices(losses: Losses, labels: Mapping[str, Sequence[str]], seed: int) -> list[Slice]:
    """Compares the losses slice by slice.

    Args:
        losses: The losses.
        labels: Slice of every row, per kind of slice.
        seed: Random seed of the intervals.

    Returns:
        Slices with completion tokens, grouped by kind and sorted by name; of each kind the 20 with the most rows.
    """
    slices = []
    for by, names in labels.items():
        values, codes, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:MAX_SLICES]
        for code in sorted(largest.tolist(), key=lambda i: _natural_key(str(values[i]))):
            rows = np.flatnonzero(codes == code)
            if losses.tokens[rows].sum():
                slices.append(_slice(losses, rows, by, str(values[code]), seed))
    return slices


def worst_slice(slices: Sequence[Slice]) -> Metrics:
    """Returns the largest difference among slices with enough rows; empty if all slices are small."""
    deltas = [one.delta for one in slices if one.rows >= MIN_SLICE_ROWS]
    return {"worst_slice_loss_delta": max(deltas)} if deltas else {}


def answer_metrics(scores: Mapping[str, Sequence[Scores]], seed: int) -> Metrics:
    """Returns the metrics of every candidate's answers, and the differences between tuned and base model.

    Args:
        scores: Scores of each candidate's answers to the same prompts.
        seed: Random seed of the intervals.

    Returns:
        `<candidate>_<metric>` and `<metric>_delta`, each with `_ci_low` and `_ci_high`.
    """
    ratios = {f"{name}_{metric}": ratio for name, own in scores.items() for metric, ratio in aggregate(own).items()}
    differences = {}
    if "base" in scores and "tuned" in scores:
        differences = {f"{metric}_delta": (f"tuned_{metric}", f"base_{metric}") for metric in aggregate(scores["base"])}
    intervals = bootstrap_intervals(ratios, differences, seed)
    values = {name: ratio.value for name, ratio in ratios.items()}
    values |= {name: values[first] - values[second] for name, (first, second) in differences.items()}
    metrics: Metrics = {}
    for name, value in values.items():
        metrics |= {name: value, f"{name}_ci_low": intervals[name].low, f"{name}_ci_high": intervals[name].high}
    return metrics


def round_metrics(metrics: Metrics) -> Metrics:
    """Rounds metrics to six decimal places; counts stay integers."""
    return {name: value if isinstance(value, int) else round(value, 6) for name, value in metrics.items()}


def _compare(losses: Losses, rows: Indices, seed: int) -> tuple[float, float, Interval]:
    tokens = losses.tokens[rows].astype(np.float64)
    ratios = {name: Ratio(losses.nll[name][rows], tokens) for name in MODELS}
    interval = bootstrap_intervals(ratios, {"delta": ("tuned", "base")}, seed)["delta"]
    return ratios["base"].value, ratios["tuned"].value, interval


def _slice(losses: Losses, rows: Indices, by: str, name: str, seed: int) -> Slice:
    base, tuned, interval = _compare(losses, rows, seed)
    tokens = int(losses.tokens[rows].sum())
    numbers = [round(value, 6) for value in (base, tuned, tuned - base, interval.low, interval.high)]
    return Slice(by, name, len(rows), tokens, *numbers)


def _natural_key(name: str) -> tuple[float, str]:
    first = name.split("-")[0]
    return (float(first) if first.isdecimal() else math.inf, name)
