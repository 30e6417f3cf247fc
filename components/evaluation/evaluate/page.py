"""HTML page of an evaluation: metrics with intervals, slices, and answers with their differences marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_finetune.components.evaluation.evaluate.answers import Sample
from llm_finetune.components.evaluation.evaluate.comparison import MIN_SLICE_ROWS, Metrics, Slice
from llm_finetune.components.evaluation.evaluate.evaluation import Evaluation
from llm_finetune.components.evaluation.evaluate.intervals import Interval
from llm_finetune.components.evaluation.evaluate.judge import Verdict
from llm_finetune.components.evaluation.evaluate.loss import Losses
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.evaluate.word_diff import Piece, word_diff
from llm_finetune.components.evaluation.metrics import ANSWER_METRICS, CANDIDATES, LOSS_METRICS, TASK_PARTS, Metric
from llm_finetune.components.shared.charts import ticks
from llm_finetune.components.shared.pages import bars, cut, write_page

MAX_CHARACTERS = 1000
MAX_SAMPLES = 64
BARS_PER_TICK = 5
WIDTH, HEIGHT = 360.0, 110.0


@dataclass(frozen=True)
class Histogram:
    """Layout of the histogram of the difference in loss per token, in pixels of a 360 by 110 SVG.

    Attributes:
        bars: Rectangle of each bin.
        ticks: Position and label of each tick.
        zero: Position of zero.
        better: Number of rows on which the tuned model is better.
        rows: Number of rows.
        counts: Lower bound and count of each bin.
    """

    bars: list[dict[str, float]]
    ticks: list[tuple[float, str]]
    zero: float
    better: int
    rows: int
    counts: list[tuple[float, int]]


@dataclass(frozen=True)
class ForestLine:
    """One line of the forest plot; positions are on a scale from 0 to 100.

    Attributes:
        slice: The slice.
        x: Position of the difference.
        start: Position of the interval's lower bound.
        end: Position of the interval's upper bound.
        zero: Position of zero.
    """

    slice: Slice
    x: float
    start: float
    end: float
    zero: float


@dataclass(frozen=True)
class Cell:
    """A metric's value, and its interval if it has one."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class MetricRow:
    """A metric of all candidates.

    Attributes:
        metric: The metric.
        cells: Value per candidate; None if it was not measured.
        difference: Tuned minus base; None if it was not measured.
        tone: CSS class of the difference: `good`, `bad` or empty.
    """

    metric: Metric
    cells: list[Cell | None]
    difference: Cell | None
    tone: str


@dataclass(frozen=True)
class ShownAnswer:
    """A candidate's answer with its diff against the reference."""

    label: str
    tokens: int
    stopped: bool
    exact: bool
    pieces: list[Piece]


@dataclass(frozen=True)
class ShownSample:
    """A prompt with its reference and answers, cut for the page."""

    row: int
    prompt: str
    reference: str
    answers: list[ShownAnswer]
    verdict: Verdict | None


def write(path: str | Path, evaluation: Evaluation, losses: Losses, settings: Settings) -> None:
    """Writes the page.

    Args:
        path: File to write.
        evaluation: The evaluation.
        losses: Losses of every row.
        settings: Settings of the card.
    """
    metrics = evaluation.metrics
    answering = {name: label for name, label in CANDIDATES.items() if f"{name}_stop_rate" in metrics}
    candidates = answering or {name: CANDIDATES[name] for name in ("base", "tuned")}
    rows = [_metric_row(metric, metrics, list(candidates)) for metric in (*LOSS_METRICS, *ANSWER_METRICS)]
    write_page(
        path,
        Path(__file__).with_name("evaluation.html.jinja"),
        title="Evaluate",
        evaluation=evaluation,
        metrics=metrics,
        settings=settings,
        verdict=_verdict(metrics),
        candidates=candidates,
        metric_rows=[row for row in rows if any(row.cells)],
        histogram=histogram(losses),
        slices=forest(evaluation.slices, metrics),
        min_slice_rows=MIN_SLICE_ROWS,
        tasks=_tasks(metrics),
        samples=[_shown_sample(sample) for sample in evaluation.samples[:MAX_SAMPLES]],
    )


def histogram(losses: Losses) -> Histogram:
    """Computes the histogram of the difference in loss per token, tuned minus base.

    Args:
        losses: Losses of every row.
    """
    has_tokens = losses.tokens > 0
    deltas = losses.delta[has_tokens] / losses.tokens[has_tokens]
    low, high = (float(np.quantile(deltas, q)) for q in (0.01, 0.99))
    marks = ticks(min(low, 0.0), max(high, 0.0))
    step = marks[1] - marks[0]
    # Outliers get a tick interval of their own, so that no bar mixes rows from both sides of zero.
    if deltas.min() < marks[0]:
        marks.insert(0, marks[0] - step)
    if deltas.max() > marks[-1]:
        marks.append(marks[-1] + step)
    bins = BARS_PER_TICK * (len(marks) - 1)
    counts, edges = np.histogram(np.clip(deltas, marks[0], marks[-1]), bins=bins, range=(marks[0], marks[-1]))
    scale = WIDTH / (marks[-1] - marks[0])
    return Histogram(
        bars=bars(counts.tolist(), WIDTH, HEIGHT),
        ticks=[((mark - marks[0]) * scale, f"{mark:g}") for mark in marks],
        zero=-marks[0] * scale,
        better=int((deltas < 0).sum()),
        rows=len(deltas),
        counts=list(zip(edges[:-1].tolist(), counts.tolist(), strict=True)),
    )


def forest(slices: Sequence[Slice], metrics: Metrics) -> list[ForestLine]:
    """Computes the forest plot: the differences of all rows and of each slice on one scale.

    Args:
        slices: The slices.
        metrics: Metrics over all rows.
    """
    overall = Slice(
        "all rows",
        "",
        int(metrics["samples_used"]),
        int(metrics["completion_tokens"]),
        *(
            metrics[name]
            for name in ("base_loss", "tuned_loss", "loss_delta", "loss_delta_ci_low", "loss_delta_ci_high")
        ),
    )
    lines = [overall, *slices]
    low, high = min(0.0, *(line.low for line in lines)), max(0.0, *(line.high for line in lines))
    scale = 100 / ((high - low) or 1.0)
    return [
        ForestLine(
            slice=line,
            x=(line.delta - low) * scale,
            start=(line.low - low) * scale,
            end=(line.high - low) * scale,
            zero=-low * scale,
        )
        for line in lines
    ]


def _verdict(metrics: Metrics) -> tuple[str, str]:
    """Returns the CSS class and the text of the verdict."""
    if metrics["loss_delta_ci_high"] < 0:
        return "good", "The tuned model is significantly better on these rows."
    if metrics["loss_delta_ci_low"] > 0:
        return "bad", "The tuned model is significantly worse on these rows."
    return "bad", "The difference is not significant."


def _metric_row(metric: Metric, metrics: Metrics, candidates: Sequence[str]) -> MetricRow:
    difference = _cell(f"{metric.name}_delta", metrics)
    cells = [_cell(f"{name}_{metric.name}", metrics) for name in candidates]
    return MetricRow(metric, cells, difference, _tone(metric, difference))


def _cell(name: str, metrics: Metrics) -> Cell | None:
    if name not in metrics:
        return None
    low, high = metrics.get(f"{name}_ci_low"), metrics.get(f"{name}_ci_high")
    return Cell(metrics[name], None if low is None or high is None else Interval(low, high))


def _tone(metric: Metric, difference: Cell | None) -> str:
    interval = difference.interval if difference else None
    if not metric.better or interval is None or interval.low <= 0 <= interval.high:
        return ""
    return "good" if (interval.low > 0) == (metric.better == "higher") else "bad"


def _tasks(metrics: Metrics) -> list[tuple[str, list[float | None]]]:
    """Returns one row per task and metric, without the task's metrics that repeat those of its first metric."""
    tasks: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        stem, _, part = name.rpartition(".")
        if stem.startswith("task.") and part in TASK_PARTS:
            tasks.setdefault(stem.removeprefix("task."), {})[part] = value
    rows = {stem: parts for stem, parts in tasks.items() if not any(other.startswith(f"{stem}.") for other in tasks)}
    return [(stem, [parts.get(part) for part in TASK_PARTS]) for stem, parts in rows.items()]


def _shown_sample(sample: Sample) -> ShownSample:
    reference = cut(sample.reference, MAX_CHARACTERS)
    answers = [
        ShownAnswer(
            label=CANDIDATES[name],
            tokens=answer.tokens,
            stopped=answer.stopped,
            exact=answer.text.strip() == sample.reference.strip(),
            pieces=word_diff(reference, cut(answer.text.strip(), MAX_CHARACTERS)),
        )
        for name, answer in ((name, sample.answers[name]) for name in CANDIDATES if name in sample.answers)
    ]
    return ShownSample(sample.row, cut(sample.prompt, MAX_CHARACTERS), reference, answers, sample.verdict)
