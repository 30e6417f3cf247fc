"""Preview page: kept rows, and dropped rows by reason."""

from pathlib import Path

import numpy as np

from llm_finetune.components.data.filter_clean.facts import Facts
from llm_finetune.components.data.filter_clean.row_filter import NearPair
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.charts import histogram
from llm_finetune.components.shared.pages import cut, write_page

SHOWN_ROWS = 20
SHOWN_CHARACTERS = 160


def write_preview(
    clean_dataset: str | Path,
    preview: str | Path,
    facts: Facts,
    lengths: np.ndarray,
    pairs: list[NearPair],
    settings: Settings,
) -> None:
    """Writes the page.

    Args:
        clean_dataset: Folder with the kept rows.
        preview: HTML file to write.
        facts: Facts about the kept and dropped rows.
        lengths: Number of kept rows per length in characters; the last entry includes all longer rows.
        pairs: Examples of near-duplicates.
        settings: The card's settings.
    """
    table = tables.head(clean_dataset, SHOWN_ROWS)
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    write_page(
        preview,
        Path(__file__).with_name("preview.html.jinja"),
        title="Filter & Clean",
        facts=facts,
        histogram=histogram(lengths, "characters"),
        pairs=[]
        if settings.pii == "redact"
        else [(p.similarity, _readable(p.kept), _readable(p.dropped)) for p in pairs],
        settings=settings,
        rows=[[" ".join(cut(cell, 4 * SHOWN_CHARACTERS).split("\n")) for cell in row] for row in rows],
        characters=SHOWN_CHARACTERS,
    )


def _readable(text: str) -> str:
    return text.replace("\x1f", " → ")
