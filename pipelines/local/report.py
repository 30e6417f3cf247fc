"""What a finished run has to show."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llm_finetune.components.shared.pages import cut
from llm_finetune.components.shared.progress import clock
from llm_finetune.pipelines.local.runner import LocalRun
from llm_finetune.pipelines.local.state import RunState

FIGURES = {
    "loss": "loss per completion token",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "json_valid": "valid JSON",
    "field_f1": "field F1",
    "stop_rate": "stops by itself",
}
ANSWERS_SHOWN = 3


def show_results(console: Console, run: LocalRun) -> None:
    """Prints metrics, answers side by side, pages, and times.

    Args:
        console: Where to print.
        run: A run that has ended.
    """
    report = run.state.output("evaluate", "eval_report")
    if report:
        content = json.loads(report.read_text(encoding="utf-8"))
        console.print(_figures(content["metrics"]))
        console.print(_answers(content["samples"][:ANSWERS_SHOWN]))
    console.print(_pages(run.state))
    console.print(_times(run))


def closed_gate(state: RunState) -> str:
    """Returns why the gate is closed, or an empty string if it is open or was not reached."""
    verdict = state.metadata("quality-gate", "gate_report")
    return str(verdict["reason"]) if verdict.get("open") is False else ""


def _figures(metrics: dict[str, float]) -> Table:
    table = Table(
        title=f"Base and tuned model on the same {metrics['samples_used']:.0f} held-out rows", title_justify="left"
    )
    for column in ("figure", "base", "tuned"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure, label in FIGURES.items():
        if f"base_{figure}" in metrics:
            table.add_row(label, *(f"{metrics[f'{model}_{figure}']:.4g}" for model in ("base", "tuned")))
    return table


def _answers(samples: list[dict[str, Any]]) -> Table:
    table = Table(title="The same held-out prompts", title_justify="left", show_lines=True)
    for column in ("prompt", "base answers", "tuned answers", "reference"):
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


def _pages(state: RunState) -> Panel:
    lines = []
    for card in state.cards.values():
        for path in sorted(card.outputs.values()):
            if path.is_file() and _is_page(path):
                lines.append(f"{card.title:<18} {path.resolve().as_uri()}")
    return Panel(Text("\n".join(lines) or "none"), title="Pages", title_align="left")


def _is_page(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    return start.startswith((b"<!doctype html", b"# "))


def _times(run: LocalRun) -> Table:
    table = Table(
        title=f"{clock(run.seconds)} in all, at most {run.peak_memory_gib:.1f} GiB of memory", title_justify="left"
    )
    table.add_column("card")
    table.add_column("time", justify="right")
    for card in run.state.cards.values():
        table.add_row(
            card.title, "cached" if card.state == "cached" else f"{card.seconds:.1f} s" if card.seconds else "-"
        )
    return table
