"""What a finished run has to show."""

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

FIGURES = {
    "loss": "loss per completion token",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "json_valid": "valid JSON",
    "field_f1": "field F1",
    "stop_rate": "stops by itself",
}
ANSWERS_SHOWN = 3
# The pages whose links are printed; the index links all.
MAIN_PAGES = {"data-report": "report", "tokenize": "preview", "finetune-lora": "loss_curve", "evaluate": "eval_page"}


def show_results(console: Console, run: LocalRun) -> None:
    """Prints metrics, answers side by side, and times.

    Args:
        console: Where to print.
        run: A run that has ended.
    """
    report = run.state.output("evaluate", "eval_report")
    if report:
        content = json.loads(report.read_text(encoding="utf-8"))
        console.print(_figures(content["metrics"]))
        console.print(_answers(content["samples"][:ANSWERS_SHOWN]))
    for line in _merged_types(run.state):
        console.print(Text(line), soft_wrap=True)
    console.print(_times(run))


def show_pages(console: Console, state: RunState) -> None:
    """Prints the links to the main pages and, last, to the index, each alone on its line."""
    for task, output in MAIN_PAGES.items():
        card = state.cards.get(task)
        for page in (card.pages or []) if card else []:
            if page.output == output:
                console.print(f"\n{page.title}:", markup=False)
                console.out(page.path.as_uri())
    show_index(console, state)


def closed_gate(state: RunState) -> str:
    """Returns why the gate is closed, or an empty string if it is open or was not reached."""
    verdict = state.metadata("quality-gate", "gate_report")
    return str(verdict["reason"]) if verdict.get("open") is False else ""


def _merged_types(state: RunState) -> list[str]:
    """Returns the type of the merged weights, and what was measured of each that was tried."""
    page = state.output("merge-export", "model_summary")
    rows = page.read_text(encoding="utf-8").splitlines() if page else []
    shown = (row.strip("| ").replace("\\", "").split(" | ") for row in rows if row.startswith(("| dtype ", "| tried ")))
    return [f"merged weights: {name} {value}" for name, value in shown]


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


def _times(run: LocalRun) -> Table:
    table = Table(
        title=f"{format_duration(run.seconds)} in all, at most {run.peak_memory_gib:.1f} GiB of memory",
        title_justify="left",
    )
    table.add_column("card")
    table.add_column("time", justify="right")
    for card in run.state.cards.values():
        table.add_row(
            card.title, "cached" if card.state == "cached" else f"{card.seconds:.1f} s" if card.seconds else "-"
        )
    return table
