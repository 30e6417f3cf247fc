"""Writes report pages about the data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.data_report.overview import card_rows, leakage_table, split_table
from llm_finetune.components.data.data_report.profile import Profile, profile
from llm_finetune.components.data.data_report.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.charts import Histogram, histogram
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.rows.text import MAX_COUNTED_LENGTH, count_lengths

STAGES = (
    "raw_dataset",
    "clean_dataset",
    "train_dataset",
    "val_dataset",
    "train_sft",
    "val_sft",
    "train_tokens",
    "val_tokens",
)
PAGES = ("report", "raw_report", "train_report", "val_report")
_DATASETS = {
    "raw_report": ("Raw data", "raw_dataset", ""),
    "train_report": ("Training data", "train_dataset", "train_tokens"),
    "val_report": ("Validation data", "val_dataset", "val_tokens"),
}


@dataclass(frozen=True)
class Stage:
    """A dataset between two cards.

    Attributes:
        path: Folder of the dataset.
        metadata: Metadata recorded by the card that wrote it.
    """

    path: str | Path
    metadata: Mapping[str, object]


def data_report(stages: Mapping[str, Stage], pages: Mapping[str, str | Path], settings: Settings) -> None:
    """Writes all pages.

    Args:
        stages: Datasets by the names in `STAGES`.
        pages: HTML files to write by the names in `PAGES`.
        settings: The card's settings.

    Raises:
        UserError: If a column is missing.
    """
    profiles = {}
    for page, (title, name, tokens) in _DATASETS.items():
        profiles[title] = found = profile(stages[name].path, settings)
        lengths = token_lengths(stages[tokens].path) if tokens else None
        _write_dataset(pages[page], title, found, lengths, settings)
    _write_overview(pages["report"], stages, profiles)


def token_lengths(tokens: str | Path) -> Histogram:
    """Returns the histogram of document lengths in tokens.

    Args:
        tokens: Folder of token rows, packed or not.
    """
    packed = "seq_lengths" in tables.schema(tokens).names
    counts = np.zeros(MAX_COUNTED_LENGTH + 1, np.int64)
    for batch in tables.batches(tokens, ["seq_lengths" if packed else "input_ids"]):
        column = batch.column(0)
        lengths: pa.Array = pc.list_flatten(column) if packed else pc.list_value_length(column)
        counts += count_lengths(lengths.to_numpy(zero_copy_only=False))
    return histogram(counts, "tokens")


def _write_dataset(page: str | Path, title: str, found: Profile, tokens: Histogram | None, settings: Settings) -> None:
    write_page(
        page,
        Path(__file__).with_name("dataset.html.jinja"),
        title=title,
        found=found,
        characters=histogram(found.lengths, "characters"),
        tokens=tokens,
        settings=settings,
    )


def _write_overview(page: str | Path, stages: Mapping[str, Stage], profiles: Mapping[str, Profile]) -> None:
    paths = {name: stage.path for name, stage in stages.items()}
    metadata = {name: stage.metadata for name, stage in stages.items()}
    rows = {name: tables.count_rows(stages[name].path) for name in ("train_dataset", "val_dataset")}
    write_page(
        page,
        Path(__file__).with_name("overview.html.jinja"),
        title="Data Report",
        source=str(metadata["raw_dataset"].get("source", "")),
        revision=str(metadata["raw_dataset"].get("revision", "")),
        cards=card_rows(paths, metadata),
        splits=split_table(metadata, rows),
        leakage=leakage_table(metadata),
        shown_template=str(metadata["train_sft"].get("template", "")),
        profiles=profiles,
        lengths={title: histogram(found.lengths, "characters") for title, found in profiles.items()},
        tokens=token_lengths(stages["train_tokens"].path),
    )
