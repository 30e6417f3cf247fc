"""Computes statistics of a dataset in one pass."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_finetune.components.data.data_report.outliers import Outlier, find_outliers, measure
from llm_finetune.components.data.data_report.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.rows.duplicates import hash_texts, normalize_text
from llm_finetune.components.shared.rows.language import detect_languages
from llm_finetune.components.shared.rows.layouts import detect_layout, layout_name
from llm_finetune.components.shared.rows.pii import PersonalData
from llm_finetune.components.shared.rows.text import MAX_COUNTED_LENGTH, check_columns, count_lengths, row_texts

SHOWN_ROWS = 10
SHOWN_CLUSTERS = 5
SHOWN_PERSONAL = 5


@dataclass(frozen=True)
class Cluster:
    """Rows with the same text, ignoring case and white space.

    Attributes:
        size: Number of rows.
        rows: Row numbers of the first two.
    """

    size: int
    rows: tuple[int, ...]


@dataclass
class Profile:
    """Statistics of a dataset.

    Attributes:
        rows: Number of rows.
        bytes: Size in memory.
        layout: Name of the rows' layout.
        columns: Column names.
        lengths: Rows per length in characters; the last entry includes all longer rows.
        empty_outputs: Rows without an answer.
        clusters: Number of clusters of equal rows.
        repeated: Rows that equal an earlier row.
        largest: The largest clusters.
        personal: Personal data and secrets by kind.
        personal_rows: Examples of texts with personal data: the kinds, and the masked text.
        languages: Sampled rows by language.
        longest: Row numbers and lengths of the longest rows.
        outliers: The largest outliers.
        shown_texts: Text of every row named above, with personal data masked.
    """

    rows: int = 0
    bytes: int = 0
    layout: str = ""
    columns: list[str] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(MAX_COUNTED_LENGTH + 1, np.int64))
    empty_outputs: int = 0
    clusters: int = 0
    repeated: int = 0
    largest: list[Cluster] = field(default_factory=list)
    personal: Counter[str] = field(default_factory=Counter)
    personal_rows: list[tuple[str, str]] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    longest: list[tuple[int, int]] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)
    shown_texts: dict[int, str] = field(default_factory=dict)


def profile(dataset: str | Path, settings: Settings) -> Profile:
    """Computes the statistics of a dataset, and reads the rows to show a second time.

    Args:
        dataset: Folder with the rows.
        settings: The card's settings.

    Returns:
        The statistics. About thirty bytes per row are kept in memory.

    Raises:
        UserError: If a column is missing.
    """
    schema = tables.schema(dataset)
    fields = detect_layout(schema, settings)
    check_columns(schema, fields)
    personal = PersonalData(settings.phone_region)
    found = Profile(layout=layout_name(schema, fields), columns=schema.names)
    step = max(1, -(-tables.count_rows(dataset) // settings.language_rows)) if settings.language_rows else 0
    content, measured = [], []
    for batch in tables.read_ahead(tables.batches(dataset)):
        text = row_texts(batch, fields)
        whole = text.full_text()
        length = text.lengths().to_numpy(zero_copy_only=False)
        found.lengths += count_lengths(length)
        found.empty_outputs += int(pc.sum(pc.equal(text.output, "")).as_py() or 0)
        found.longest = _longest(found.longest, length, found.rows)
        content.append(hash_texts(normalize_text(whole))[:, 0])
        measured.append(measure(whole))
        if step:
            sampled = np.arange(-found.rows % step, batch.num_rows, step)
            found.languages.update(detect_languages(text.distinctive_text().take(pa.array(sampled))))
        if settings.pii != "off":
            _count_personal(personal, whole, found)
        found.rows += batch.num_rows
        found.bytes += batch.nbytes
    found.clusters, found.repeated, found.largest = _clusters(content)
    found.outliers = find_outliers(np.concatenate(measured), SHOWN_ROWS) if measured else []
    numbers = {row for row, _ in found.longest} | {outlier.row for outlier in found.outliers}
    numbers |= {row for cluster in found.largest for row in cluster.rows}
    found.shown_texts = _texts_of(dataset, sorted(numbers), fields, personal)
    return found


def _longest(known: list[tuple[int, int]], length: np.ndarray, first: int) -> list[tuple[int, int]]:
    """Returns the longest rows so far; of equally long rows the earlier ones."""
    order = np.argsort(-length, kind="stable")[:SHOWN_ROWS]
    new = [(first + int(row), int(length[row])) for row in order]
    return sorted(known + new, key=lambda item: (-item[1], item[0]))[:SHOWN_ROWS]


def _count_personal(personal: PersonalData, column: pa.StringArray, found: Profile) -> None:
    for kinds, masked in personal.find(column):
        found.personal += kinds
        if len(found.personal_rows) < SHOWN_PERSONAL:
            found.personal_rows.append((", ".join(kinds), readable(masked)))


def _clusters(content: list[np.ndarray]) -> tuple[int, int, list[Cluster]]:
    hashed = np.concatenate(content) if content else np.zeros(0, np.uint64)
    order = np.argsort(hashed, kind="stable")
    _, begins, sizes = np.unique(hashed[order], return_index=True, return_counts=True)
    repeated = np.flatnonzero(sizes > 1)
    first = order[begins[repeated]]
    largest = repeated[np.lexsort((first, -sizes[repeated]))][:SHOWN_CLUSTERS]
    clusters = [Cluster(int(sizes[i]), tuple(int(row) for row in order[begins[i] : begins[i] + 2])) for i in largest]
    return len(repeated), int(sizes[repeated].sum()) - len(repeated), clusters


def _texts_of(dataset: str | Path, numbers: list[int], fields: Settings, personal: PersonalData) -> dict[int, str]:
    """Returns the text of rows by number, reading only the row groups that contain them."""
    shown: dict[int, str] = {}
    first = 0
    for file in tables.shards(dataset):
        with pq.ParquetFile(file) as reader:
            for group in range(reader.num_row_groups):
                rows = reader.metadata.row_group(group).num_rows
                here = [number - first for number in numbers if first <= number < first + rows]
                if here:
                    table = reader.read_row_group(group).take(pa.array(here)).combine_chunks()
                    whole = row_texts(table.to_batches()[0], fields).full_text().to_pylist()
                    shown |= {
                        first + row: readable(personal.redact(text, Counter()))
                        for row, text in zip(here, whole, strict=True)
                    }
                first += rows
    return shown


def readable(text: str) -> str:
    """Returns a row's text in one line, with arrows between its fields."""
    return " → ".join(" ".join(part.split()) for part in text.split("\x1f") if part)
