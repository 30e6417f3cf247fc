"""Model summaries: Markdown that the dashboard renders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import table


def write_summary(path: str | Path, title: str, facts: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Writes a table of facts with notes below it.

    Args:
        path: The Markdown file.
        title: Heading.
        facts: Values by name, in order.
        notes: Sentences that say what the facts rest on or what to beware of; shown as a list.
    """
    text = [f"# {title}", "", *table(("", ""), facts.items())]
    if notes:
        text += ["", *(f"- {note}" for note in notes)]
    write_text(path, "\n".join(text) + "\n")


def gigabytes(size: float) -> str:
    """Returns a number of bytes as `269 MB` or `16.1 GB`."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
