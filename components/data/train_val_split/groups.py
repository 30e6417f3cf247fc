"""Rows that must stay together: duplicates, near-duplicates, and rows of one group."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.duplicates import NearDuplicates, hashes, normalised
from llm_finetune.components.shared.text import FieldSettings, Texts, as_text, empty, texts, trimmed

# Above so many rows near-duplicates are not looked for: about a millisecond and 3 KB each.
NEAR_ROWS = 100_000
# A row that already has so many near-duplicates is not indexed: they stand for it, and dense data stays linear.
NEIGHBOURS = 32
CLOSE_MARGIN = 0.1


@dataclass
class Rows:
    """What the split needs to know of every row, in the order of the dataset.

    Attributes:
        content: 128-bit hash of the row's normalised text, shape [rows, 2].
        prompt: The same without the answer.
        group: Hash of the row's value of `group_key`, shape [rows]; None without one.
        has_group: Whether that value is not null.
        pairs: Near-duplicates, as pairs of row numbers, shape [pairs, 2].
        close: Pairs a little below the threshold.
        looked_for_pairs: Whether the two were looked for at all.
        bytes: Size of the dataset in memory.
    """

    content: np.ndarray
    prompt: np.ndarray
    group: np.ndarray | None
    has_group: np.ndarray | None
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    close: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    looked_for_pairs: bool = False
    bytes: int = 0


def read(dataset: str | Path, fields: FieldSettings, group_key: str, near_threshold: float) -> Rows:
    """Reads a dataset once.

    Args:
        dataset: Folder with the rows.
        fields: Columns with the text; if the dataset has none of them, every column counts as text.
        group_key: Column whose equal values stay together; empty for none.
        near_threshold: Similarity of near-duplicates; 0 does not look for them.

    Returns:
        Hashes and pairs.
    """
    near = NearDuplicates(near_threshold) if near_threshold and tables.count_rows(dataset) <= NEAR_ROWS else None
    content: list[np.ndarray] = []
    prompt: list[np.ndarray] = []
    group: list[np.ndarray] = []
    has_group: list[np.ndarray] = []
    pairs: list[tuple[int, int]] = []
    close: list[tuple[int, int]] = []
    rows = size = 0
    for batch in tables.read_ahead(tables.batches(dataset)):
        text = _texts(batch, fields)
        content.append(hashes(normalised(text.whole())))
        prompt.append(hashes(normalised(text.prompt())))
        if group_key:
            values = as_text(batch.column(group_key))
            group.append(hashes(values.fill_null(""))[:, 0])
            has_group.append(values.is_valid().to_numpy(zero_copy_only=False))
        if near:
            _add_pairs(near, normalised(text.own()), rows, pairs, close)
        rows += batch.num_rows
        size += batch.nbytes
    return Rows(
        _stacked(content),
        _stacked(prompt),
        np.concatenate(group) if group else None,
        np.concatenate(has_group) if has_group else None,
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array(close, np.int64).reshape(-1, 2),
        near is not None,
        size,
    )


def labels(rows: Rows) -> np.ndarray:
    """Returns the number of each row's group: rows that are joined in any way, directly or through others.

    Args:
        rows: What `read` returned.

    Returns:
        Integers from 0, shape [rows].
    """
    numbers = np.arange(len(rows.content))
    first, same = _same_content(rows.content)
    if rows.group is None and not len(rows.pairs):
        return same
    joined = [np.stack([numbers, first[same]], axis=1), rows.pairs]
    if rows.group is not None and rows.has_group is not None:
        grouped = np.flatnonzero(rows.has_group)
        _, begin, inverse = np.unique(rows.group[grouped], return_index=True, return_inverse=True)
        joined.append(np.stack([grouped, grouped[begin][inverse]], axis=1))
    from scipy.sparse import coo_array  # half a second that sets without near-duplicates do not need
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate(joined)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(numbers), len(numbers)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def repeats(content: np.ndarray) -> np.ndarray:
    """Returns how many equal rows came before each row."""
    _, same = _same_content(content)
    order = np.argsort(same, kind="stable")
    counts = np.bincount(same)
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    result = np.empty(len(same), np.int64)
    result[order] = np.arange(len(same)) - begins
    return result


def _same_content(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first row of each distinct content, and for each row the number of its content."""
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: of equal rows the first comes first
    ordered = content[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    same = np.empty(len(order), np.int64)
    same[order] = np.cumsum(new) - 1
    return order[new], same


def _add_pairs(
    near: NearDuplicates, text: pa.StringArray, start: int, pairs: list[tuple[int, int]], close: list[tuple[int, int]]
) -> None:
    for row, sketch in enumerate(near.signatures(text), start):
        found = near.similar(sketch, near.threshold - CLOSE_MARGIN)
        alike = [(row, other) for other, similarity in found if similarity >= near.threshold]
        pairs += alike
        close += [(row, other) for other, similarity in found if similarity < near.threshold]
        if len(alike) < NEIGHBOURS:
            near.insert(row, sketch)


def _texts(batch: pa.RecordBatch, fields: FieldSettings) -> Texts:
    if fields.chat_key:
        return texts(batch, fields)
    names = batch.schema.names
    keys = (fields.instruction_key, fields.input_key, fields.output_key)
    if any(key in names for key in keys):
        return Texts(*(trimmed(batch.column(key)) if key in names else empty(batch.num_rows) for key in keys))
    everything = pc.binary_join_element_wise(*(trimmed(column) for column in batch.columns), "\x1f")
    return Texts(everything, empty(batch.num_rows), empty(batch.num_rows))


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)
