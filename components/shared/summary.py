"""Markdown summaries that the dashboard shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import table


def write_summary(path: str | Path, title: str, facts: Mapping[str, object], notes: Sequence[str] = ()) -> None:
    """Writes a table of facts and a list of notes.

    Args:
        path: Markdown file to write.
        title: Heading.
        facts: Values by name, in the order of the rows.
        notes: Sentences about the sources and limits of the facts.
    """
    text = [f"# {title}", "", *table(("", ""), facts.items())]
    if notes:
        text += ["", *(f"- {note}" for note in notes)]
    write_text(path, "\n".join(text) + "\n")


def cell(value: object) -> str:
    """Returns a value as a cell of a Markdown table, with all markup escaped."""
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


def format_bytes(size: float) -> str:
    """Returns a number of bytes as `269 MB` or `16.1 GB`."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
