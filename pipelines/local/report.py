"""Prints the results of a finished run."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_finetune.components.shared.pages import cut
from llm_finetune.components.shared.progress import format_duration
from llm_finetune.pipelines.local.pages import show_index
from llm_finetune.pipelines.local.runner import LocalRun
from llm_finetune.pipelines.local.state import RunState

METRICS = {
    "loss": "loss per completion token",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "json_valid": "valid JSON",
    "field_f1": "field F1",
    "stop_rate": "stop rate",
}
SHOWN_ANSWERS = 3
# Pages whose links are printed; the index links to all pages.
MAIN_PAGES = {"data-report": "report", "tokenize": "preview", "finetune-lora": "loss_curve", "evaluate": "eval_page"}


def show_results(console: Console, run: LocalRun) -> None:
    """Prints metrics, answers of base and tuned model, and times.

    Args:
        console: Console to print to.
        run: A finished run.
    """
    report = run.state.output("evaluate", "eval_report")
    if report:
        content = json.loads(report.read_text(encoding="utf-8"))
        console.print(_metrics_table(content["metrics"]))
        console.print(_answers_table(content["samples"][:SHOWN_ANSWERS]))
    for line in _merged_types(run.state):
        console.print(Text(line), soft_wrap=True)
    console.print(_times_table(run))


def show_pages(console: Console, state: RunState) -> None:
    """Prints the links to the main pages and to the index, each on a line of its own."""
    for task, output in MAIN_PAGES.items():
        card = state.cards.get(task)
        for page in (card.pages or []) if card else []:
            if page.output == output:
                console.print(f"\n{page.title}:", markup=False)
                console.out(page.path.as_uri())
    show_index(console, state)


def closed_gate(state: RunState) -> str:
    """Returns the reason of a closed gate; empty if the gate is open or was not reached."""
    verdict = state.metadata("quality-gate", "gate_report")
    return str(verdict["reason"]) if verdict.get("open") is False else ""


def _merged_types(state: RunState) -> list[str]:
    """Returns the data type of the merged weights, and the measurements of each type that was tried."""
    page = state.output("merge-export", "model_summary")
    rows = page.read_text(encoding="utf-8").splitlines() if page else []
    shown = (row.strip("| ").replace("\\", "").split(" | ") for row in rows if row.startswith(("| dtype ", "| tried ")))
    return [f"merged weights: {name} {value}" for name, value in shown]


def _metrics_table(metrics: dict[str, float]) -> Table:
    table = Table(
        title=f"Base and tuned model on the same {metrics['samples_used']:.0f} held-out rows", title_justify="left"
    )
    for column in ("metric", "base", "tuned"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, label in METRICS.items():
        if f"base_{metric}" in metrics:
            table.add_row(label, *(f"{metrics[f'{model}_{metric}']:.4g}" for model in ("base", "tuned")))
    return table


def _answers_table(samples: list[dict[str, Any]]) -> Table:
    table = Table(title="The same held-out prompts", title_justify="left", show_lines=True)
    for column in ("prompt", "base answer", "tuned answer", "reference"):
        table.add_column(column, overflow="fold", ratio=1)
    for sample in samples:
        cells = (
            sample["prompt"].strip(),
            sample["base"]["text"].strip(),
            sample["tuned"]["text"].strip(),
            sample["reference"],
        )
        table.add_row(*(Text(cut(cell, 300)) for cell in cells))
    return table


def _times_table(run: LocalRun) -> Table:
    table = Table(
        title=f"{format_duration(run.seconds)} in total, peak memory {run.peak_memory_gib:.1f} GiB",
        title_justify="left",
    )
    table.add_column("card")
    table.add_column("time", justify="right")
    for card in run.state.cards.values():
        table.add_row(
            card.title, "cached" if card.state == "cached" else f"{card.seconds:.1f} s" if card.seconds else "-"
        )
    return table
