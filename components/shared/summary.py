"""Model summaries: Markdown that the dashboard renders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.files import write_text


def write_summary(path: str | Path, title: str, facts: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Writes a table of facts with notes below it.

    Args:
        path: The Markdown file.
        title: Heading.
        facts: Values by name, in order.
        notes: Sentences that say what the facts rest on or what to beware of; shown as a list.
    """
    rows = [f"| {cell(name)} | {cell(value)} |" for name, value in facts.items()]
    text = [f"# {title}", "", "| | |", "|:--|:--|", *rows]
    if notes:
        text += ["", *(f"- {note}" for note in notes)]
    write_text(path, "\n".join(text) + "\n")


def cell(value: Any) -> str:
    """Returns a value as the text of a Markdown table's cell, so that nothing in it is taken for markup."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    for character in "\\|<>*_`[]":
        text = text.replace(character, "\\" + character)
    return text


def gigabytes(size: float) -> str:
    """Returns a number of bytes as `269 MB` or `16.1 GB`."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
