"""The evaluation's page: figures with intervals, slices, and answers with their differences marked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetune.components.evaluation.evaluate.comparison import LEAST_ROWS_OF_A_SLICE, Slice
from llm_finetune.components.evaluation.evaluate.differences import differences
from llm_finetune.components.evaluation.evaluate.loss import Losses
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.metrics import ANSWER_FIGURES, CONTENDERS, LOSS_FIGURES, TASK_PARTS, Figure
from llm_finetune.components.shared.charts import ticks
from llm_finetune.components.shared.pages import bars, cut, write_page

SHOWN_CHARACTERS = 1000
SHOWN_SAMPLES = 64
BARS_PER_MARK = 5
WIDTH, HEIGHT = 360.0, 110.0


def write(path: str | Path, evaluation: Mapping[str, Any], losses: Losses, settings: Settings) -> None:
    """Writes the page.

    Args:
        path: The file.
        evaluation: Fields of the evaluation.
        losses: Losses of every row.
        settings: The card's settings.
    """
    metrics = evaluation["metrics"]
    contenders = {name: label for name, label in CONTENDERS.items() if f"{name}_stop_rate" in metrics}
    write_page(
        path,
        Path(__file__).with_name("evaluation.html.jinja"),
        title="Evaluate",
        evaluation=evaluation,
        metrics=metrics,
        settings=settings,
        verdict=_verdict(metrics),
        contenders=contenders or {name: CONTENDERS[name] for name in ("base", "tuned")},
        figures=[_figure_row(figure, metrics, contenders) for figure in (*LOSS_FIGURES, *ANSWER_FIGURES)],
        histogram=histogram(losses),
        slices=forest(evaluation["slices"], metrics),
        least_rows=LEAST_ROWS_OF_A_SLICE,
        tasks=_tasks(metrics),
        samples=[_sample(sample) for sample in evaluation["samples"][:SHOWN_SAMPLES]],
    )


def histogram(losses: Losses) -> dict[str, Any]:
    """Lays out how the difference per token is spread over the rows.

    Args:
        losses: Losses of every row.

    Returns:
        Bars, their bounds and the zero line for an SVG of 360 by 110, and how many rows got better.
    """
    counted = losses.tokens > 0
    deltas = losses.delta[counted] / losses.tokens[counted]
    low, high = (float(np.quantile(deltas, q)) for q in (0.01, 0.99))
    marks = ticks(min(low, 0.0), max(high, 0.0))
    step = marks[1] - marks[0]
    # The few rows beyond are shown at the ends, never on the wrong side of zero.
    if deltas.min() < marks[0]:
        marks.insert(0, marks[0] - step)
    if deltas.max() > marks[-1]:
        marks.append(marks[-1] + step)
    bins = BARS_PER_MARK * (len(marks) - 1)
    counts, edges = np.histogram(np.clip(deltas, marks[0], marks[-1]), bins=bins, range=(marks[0], marks[-1]))
    scale = WIDTH / (marks[-1] - marks[0])
    return {
        "bars": bars(counts.tolist(), WIDTH, HEIGHT),
        "marks": [((mark - marks[0]) * scale, f"{mark:g}") for mark in marks],
        "zero": -marks[0] * scale,
        "better": int((deltas < 0).sum()),
        "rows": len(deltas),
        "counts": list(zip(edges[:-1].tolist(), counts.tolist(), strict=True)),
    }


def forest(slices: Sequence[Slice], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lays out the differences of all rows and of each slice on one scale from 0 to 100.

    Args:
        slices: The slices.
        metrics: Figures over all rows.

    Returns:
        Per line the slice and, for drawing, `x`, `from`, `to` and `zero`.
    """
    whole = Slice(
        "all rows",
        "",
        int(metrics["samples_used"]),
        int(metrics["completion_tokens"]),
        *(
            metrics[name]
            for name in ("base_loss", "tuned_loss", "loss_delta", "loss_delta_ci_low", "loss_delta_ci_high")
        ),
    )
    lines = [whole, *slices]
    low, high = min(0.0, *(one.low for one in lines)), max(0.0, *(one.high for one in lines))
    scale = 100 / ((high - low) or 1.0)
    return [
        {
            "slice": one,
            "x": (one.delta - low) * scale,
            "from": (one.low - low) * scale,
            "to": (one.high - low) * scale,
            "zero": -low * scale,
        }
        for one in lines
    ]


def _verdict(metrics: Mapping[str, float]) -> tuple[str, str]:
    if metrics["loss_delta_ci_high"] < 0:
        return "good", "The tuned model is better on these rows beyond chance."
    if metrics["loss_delta_ci_low"] > 0:
        return "bad", "The tuned model is worse on these rows beyond chance."
    return "bad", "The difference may be chance."


def _figure_row(figure: Figure, metrics: Mapping[str, float], contenders: Mapping[str, str]) -> dict[str, Any]:
    cells = []
    for name in contenders or ("base", "tuned"):
        full = f"{name}_{figure.name}"
        cells.append(
            {"value": metrics[full], "low": metrics.get(f"{full}_ci_low"), "high": metrics.get(f"{full}_ci_high")}
            if full in metrics
            else None
        )
    delta = f"{figure.name}_delta"
    difference = {end: metrics.get(f"{delta}{end}") for end in ("", "_ci_low", "_ci_high")}
    return {
        "figure": figure,
        "cells": cells,
        "any": any(cells),
        "difference": difference,
        "tone": _tone(figure, difference),
    }


def _tone(figure: Figure, difference: Mapping[str, float | None]) -> str:
    low, high = difference["_ci_low"], difference["_ci_high"]
    if not figure.better or low is None or high is None or low <= 0 <= high:
        return ""
    return "good" if (low > 0) == (figure.better == "higher") else "bad"


def _tasks(metrics: Mapping[str, float]) -> list[tuple[str, list[float | None]]]:
    """Returns a row per task and metric; the task's own lines without a metric repeat one of them."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        stem, _, part = name.rpartition(".")
        if stem.startswith("task.") and part in TASK_PARTS:
            found.setdefault(stem.removeprefix("task."), {})[part] = value
    rows = {stem: parts for stem, parts in found.items() if not any(other.startswith(f"{stem}.") for other in found)}
    return [(stem, [parts.get(part) for part in TASK_PARTS]) for stem, parts in rows.items()]


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    reference = cut(sample["reference"], SHOWN_CHARACTERS)
    answers = [
        {
            "label": CONTENDERS[name],
            "tokens": sample[name]["tokens"],
            "stopped": sample[name]["stopped"],
            "exact": sample[name]["text"].strip() == sample["reference"].strip(),
            "pieces": differences(reference, cut(sample[name]["text"].strip(), SHOWN_CHARACTERS)),
        }
        for name in CONTENDERS
        if name in sample
    ]
    return {
        "row": sample["row"],
        "prompt": sample["prompt"],
        "reference": reference,
        "answers": answers,
        "judge": sample.get("judge"),
    }
