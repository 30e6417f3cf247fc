"""What is in one dataset, from one pass over it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_finetune.components.data.data_report.oddness import Odd, measures, oddest
from llm_finetune.components.data.data_report.settings import Settings
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.rows.duplicates import hashes, normalised
from llm_finetune.components.shared.rows.language import languages
from llm_finetune.components.shared.rows.layouts import layout_of, recognised
from llm_finetune.components.shared.rows.pii import PersonalData
from llm_finetune.components.shared.rows.text import check_columns, texts

LONGEST_COUNTED = 1 << 16
SHOWN_ROWS = 10
SHOWN_CLUSTERS = 5
SHOWN_PERSONAL = 5


@dataclass(frozen=True)
class Cluster:
    """Rows with the same text, but for case and white space.

    Attributes:
        size: Number of rows.
        rows: Numbers of the first two.
    """

    size: int
    rows: tuple[int, ...]


@dataclass
class Profile:
    """A dataset in figures.

    Attributes:
        rows: Rows.
        bytes: Size in memory.
        layout: Name of the layout of its rows.
        columns: Names of its columns.
        lengths: Rows per length in characters; the last entry counts everything longer as well.
        empty_outputs: Rows without an answer.
        clusters: Number of clusters of equal rows.
        repeated: Rows that repeat an earlier one.
        largest: The largest clusters.
        personal: Personal data and secrets by kind.
        personal_rows: Texts with some, masked, as the kinds found and the text.
        languages: Rows by language, of those that were looked at.
        longest: Numbers and lengths of the longest rows.
        odd: The oddest rows.
        shown: Text of every row that is named above, personal data masked.
    """

    rows: int = 0
    bytes: int = 0
    layout: str = ""
    columns: list[str] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(LONGEST_COUNTED + 1, np.int64))
    empty_outputs: int = 0
    clusters: int = 0
    repeated: int = 0
    largest: list[Cluster] = field(default_factory=list)
    personal: Counter[str] = field(default_factory=Counter)
    personal_rows: list[tuple[str, str]] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    longest: list[tuple[int, int]] = field(default_factory=list)
    odd: list[Odd] = field(default_factory=list)
    shown: dict[int, str] = field(default_factory=dict)


def profile(dataset: str | Path, settings: Settings) -> Profile:
    """Reads a dataset once, and the rows that are to be shown once more.

    Args:
        dataset: Folder with the rows.
        settings: The card's settings.

    Returns:
        Its profile; some thirty bytes of each row are kept on the way.

    Raises:
        UserError: If a column is missing.
    """
    schema = tables.schema(dataset)
    fields = recognised(schema, settings)
    check_columns(schema, fields)
    personal = PersonalData(settings.phone_region)
    found = Profile(layout=layout_of(schema, fields), columns=schema.names)
    step = max(1, -(-tables.count_rows(dataset) // settings.language_rows)) if settings.language_rows else 0
    content, measured = [], []
    for batch in tables.read_ahead(tables.batches(dataset)):
        text = texts(batch, fields)
        whole = text.whole()
        length = text.lengths().to_numpy(zero_copy_only=False)
        found.lengths += np.bincount(np.minimum(length, LONGEST_COUNTED), minlength=LONGEST_COUNTED + 1)
        found.empty_outputs += int(pc.sum(pc.equal(text.output, "")).as_py() or 0)
        found.longest = _longest(found.longest, length, found.rows)
        content.append(hashes(normalised(whole))[:, 0])
        measured.append(measures(whole))
        if step:
            sampled = np.arange(-found.rows % step, batch.num_rows, step)
            found.languages.update(languages(text.own().take(pa.array(sampled))))
        if settings.pii != "off":
            _count_personal(personal, whole, found)
        found.rows += batch.num_rows
        found.bytes += batch.nbytes
    found.clusters, found.repeated, found.largest = _clusters(content)
    found.odd = oddest(np.concatenate(measured), SHOWN_ROWS) if measured else []
    numbers = {row for row, _ in found.longest} | {odd.row for odd in found.odd}
    numbers |= {row for cluster in found.largest for row in cluster.rows}
    found.shown = _texts_of(dataset, sorted(numbers), fields, personal)
    return found


def _longest(known: list[tuple[int, int]], length: np.ndarray, first: int) -> list[tuple[int, int]]:
    """Returns the longest rows so far, of equal ones the earlier first."""
    order = np.argsort(-length, kind="stable")[:SHOWN_ROWS]
    new = [(first + int(row), int(length[row])) for row in order]
    return sorted(known + new, key=lambda item: (-item[1], item[0]))[:SHOWN_ROWS]


def _count_personal(personal: PersonalData, column: pa.StringArray, found: Profile) -> None:
    for kinds, masked in personal.found_in(column):
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
    """Returns the text of rows by their numbers, reading only the row groups that they lie in."""
    shown: dict[int, str] = {}
    first = 0
    for file in tables.shards(dataset):
        with pq.ParquetFile(file) as reader:
            for group in range(reader.num_row_groups):
                rows = reader.metadata.row_group(group).num_rows
                here = [number - first for number in numbers if first <= number < first + rows]
                if here:
                    table = reader.read_row_group(group).take(pa.array(here)).combine_chunks()
                    whole = texts(table.to_batches()[0], fields).whole().to_pylist()
                    shown |= {
                        first + row: readable(personal.redacted(text, Counter()))
                        for row, text in zip(here, whole, strict=True)
                    }
                first += rows
    return shown


def readable(text: str) -> str:
    """Returns a row's text with its fields told apart and its lines run together."""
    return " → ".join(" ".join(part.split()) for part in text.split("\x1f") if part)
