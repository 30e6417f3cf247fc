"""Figures of base and tuned model over the same rows, with their intervals, whole and by slice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_finetune.components.evaluation.evaluate.intervals import Interval, Ratio, intervals
from llm_finetune.components.evaluation.evaluate.loss import MODELS, Losses
from llm_finetune.components.evaluation.evaluate.scores import Scored, ratios

LEAST_ROWS_OF_A_SLICE = 10
"""Rows below which a slice is shown but does not count as the worst: its difference is mostly chance."""
MOST_SLICES = 20
OVERFLOW = 700.0
"""exp() of more is no float."""

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Slice:
    """The losses of some of the rows.

    Attributes:
        by: What the rows have in common, such as `length`.
        name: Which of its values.
        rows: Number of rows.
        tokens: Completion tokens of them.
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
    """Returns losses, perplexities from them, and the difference with the 95 % interval of a paired bootstrap."""
    base, tuned, interval = _compare(losses, np.arange(len(losses.rows)), seed)
    return {
        "base_loss": base,
        "tuned_loss": tuned,
        "loss_delta": tuned - base,
        "loss_delta_ci_low": interval.low,
        "loss_delta_ci_high": interval.high,
        "base_perplexity": math.exp(min(base, OVERFLOW)),
        "tuned_perplexity": math.exp(min(tuned, OVERFLOW)),
        "samples_used": len(losses.rows),
        "completion_tokens": int(losses.tokens.sum()),
    }


def slices(losses: Losses, labels: Mapping[str, Sequence[str]], seed: int) -> list[Slice]:
    """Compares the losses slice by slice.

    Args:
        losses: The losses.
        labels: Per way of slicing, the slice of every row.
        seed: Seed of the intervals.

    Returns:
        Slices with completion tokens, those of a way together and by name; at most the 20 with the most rows of each.
    """
    found = []
    for by, names in labels.items():
        values, codes, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:MOST_SLICES]
        for code in sorted(largest.tolist(), key=lambda i: _natural(str(values[i]))):
            rows = np.flatnonzero(codes == code)
            if losses.tokens[rows].sum():
                found.append(_slice(losses, rows, by, str(values[code]), seed))
    return found


def worst_slice(found: Sequence[Slice]) -> Metrics:
    """Returns the largest difference of a slice with enough rows, if there is such a slice."""
    deltas = [one.delta for one in found if one.rows >= LEAST_ROWS_OF_A_SLICE]
    return {"worst_slice_loss_delta": max(deltas)} if deltas else {}


def answer_metrics(scored: Mapping[str, Sequence[Scored]], seed: int) -> Metrics:
    """Returns the figures of every contender's answers, and how the tuned model's differ from the base model's.

    Args:
        scored: Per contender the scores of its answers, on the same prompts.
        seed: Seed of the intervals.

    Returns:
        `<contender>_<figure>` and `<figure>_delta`, each with `_ci_low` and `_ci_high`.
    """
    figures = {f"{name}_{figure}": ratio for name, own in scored.items() for figure, ratio in ratios(own).items()}
    differences = {}
    if "base" in scored and "tuned" in scored:
        differences = {f"{figure}_delta": (f"tuned_{figure}", f"base_{figure}") for figure in ratios(scored["base"])}
    found = intervals(figures, differences, seed)
    values = {name: figure.value for name, figure in figures.items()}
    values |= {name: values[first] - values[second] for name, (first, second) in differences.items()}
    metrics: Metrics = {}
    for name, value in values.items():
        metrics |= {name: value, f"{name}_ci_low": found[name].low, f"{name}_ci_high": found[name].high}
    return metrics


def rounded(metrics: Metrics) -> Metrics:
    """Returns figures with six digits behind the point; counts stay whole."""
    return {name: value if isinstance(value, int) else round(value, 6) for name, value in metrics.items()}


def _compare(losses: Losses, rows: np.ndarray, seed: int) -> tuple[float, float, Interval]:
    tokens = losses.tokens[rows].astype(np.float64)
    figures = {name: Ratio(losses.nll[name][rows], tokens) for name in MODELS}
    interval = intervals(figures, {"delta": ("tuned", "base")}, seed)["delta"]
    return figures["base"].value, figures["tuned"].value, interval


def _slice(losses: Losses, rows: np.ndarray, by: str, name: str, seed: int) -> Slice:
    base, tuned, interval = _compare(losses, rows, seed)
    tokens = int(losses.tokens[rows].sum())
    numbers = [round(value, 6) for value in (base, tuned, tuned - base, interval.low, interval.high)]
    return Slice(by, name, len(rows), tokens, *numbers)


def _natural(name: str) -> tuple[float, str]:
    first = name.split("-")[0]
    return (float(first) if first.isdecimal() else math.inf, name)
