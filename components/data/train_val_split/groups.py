"""Rows that must stay together: duplicates, near-duplicates, and rows of one group."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.duplicates import NearDuplicates, bytes_of, hashes, normalised
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.text import FieldSettings, Texts, as_text, empty, texts, trimmed

# Above so many rows near-duplicates are not looked for: about a millisecond and 3 KB each.
NEAR_ROWS = 100_000
# A row that already has so many near-duplicates is not indexed: they stand for it, and dense data stays linear.
NEIGHBOURS = 32
CLOSE_MARGIN = 0.1
MOST_STRATA = 1_000
SEPARATOR = 0x1F  # between the fields of `Texts.whole`


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
        strata: Number of the row's value of `stratify_key`, shape [rows]; None without one.
        stratum_names: The values, by number.
    """

    content: np.ndarray
    prompt: np.ndarray
    group: np.ndarray | None
    has_group: np.ndarray | None
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    close: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    looked_for_pairs: bool = False
    bytes: int = 0
    strata: np.ndarray | None = None
    stratum_names: list[str] = field(default_factory=list)


def read(
    dataset: str | Path, fields: FieldSettings, group_key: str, stratify_key: str, near_threshold: float, copy: Path
) -> Rows:
    """Reads a dataset once.

    Args:
        dataset: Folder with the rows.
        fields: Columns with the text; if the dataset has none of them, every column counts as text.
        group_key: Column whose equal values stay together; empty for none.
        stratify_key: Column whose values both sides have in the same shares; empty for none.
        near_threshold: Similarity of near-duplicates; 0 does not look for them.
        copy: File to write the rows to as they are in memory: to read them from Parquet again would take far longer.

    Returns:
        Hashes and pairs.
    """
    near = NearDuplicates(near_threshold) if near_threshold and tables.count_rows(dataset) <= NEAR_ROWS else None
    pairs: list[tuple[int, int]] = []
    close: list[tuple[int, int]] = []
    parts = []
    names: dict[str, int] = {}
    rows = size = 0
    look = partial(_look_at, fields=fields, group_key=group_key, stratify_key=stratify_key, with_own=near is not None)
    for part in tables.in_parallel(look, _copied(tables.batches(dataset), tables.schema(dataset), copy)):
        if near and part.own is not None:
            _add_pairs(near, part.own, rows, pairs, close)
            part.own = None
        if part.stratum is not None:
            part.strata = np.array([names.setdefault(name, len(names)) for name in part.names], np.int64)[part.stratum]
        rows += len(part.content)
        size += part.bytes
        parts.append(part)
    if len(names) > MOST_STRATA:
        raise UserError(
            f"stratify_key = {stratify_key!r} has {len(names):,} different values, more than {MOST_STRATA:,}: it is no "
            "kind of row. To keep equal values on one side, use group_key"
        )
    return Rows(
        _stacked([part.content for part in parts]),
        _stacked([part.prompt for part in parts]),
        np.concatenate([part.group for part in parts]) if group_key and parts else None,
        np.concatenate([part.has_group for part in parts]) if group_key and parts else None,
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array(close, np.int64).reshape(-1, 2),
        near is not None,
        size,
        _ranks(names)[np.concatenate([part.strata for part in parts])] if stratify_key and parts else None,
        sorted(names),
    )


@dataclass
class _Part:
    """What is read of one batch; the attributes are those of `Rows`, and `own` is the text of near-duplicates."""

    content: np.ndarray
    prompt: np.ndarray
    bytes: int
    group: np.ndarray | None = None
    has_group: np.ndarray | None = None
    own: pa.StringArray | None = None
    stratum: np.ndarray | None = None
    strata: np.ndarray | None = None
    names: list[str] = field(default_factory=list)


def _copied(batches: Iterable[pa.RecordBatch], schema: pa.Schema, copy: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(copy), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write(batch)
            yield batch


def _ranks(names: dict[str, int]) -> np.ndarray:
    """Returns for each number the place of its name among all, which does not depend on the order of the rows."""
    place = {name: rank for rank, name in enumerate(sorted(names))}
    return np.array([place[name] for name in names], np.int64)


def _look_at(batch: pa.RecordBatch, fields: FieldSettings, group_key: str, stratify_key: str, with_own: bool) -> _Part:
    text = _texts(batch, fields)
    whole = normalised(text.whole())
    part = _Part(hashes(whole), _prompt_hashes(whole, text), batch.nbytes)
    if group_key:
        values = as_text(batch.column(group_key))
        part.group = hashes(values.fill_null(""))[:, 0]
        part.has_group = values.is_valid().to_numpy(zero_copy_only=False)
    if with_own:
        part.own = normalised(text.own())
    if stratify_key:
        encoded = as_text(batch.column(stratify_key)).fill_null("").dictionary_encode()
        part.stratum = encoded.indices.to_numpy(zero_copy_only=False)
        part.names = encoded.dictionary.to_pylist()
    return part


def _prompt_hashes(whole: pa.StringArray, text: Texts) -> np.ndarray:
    """Returns the hashes of what a row asks: of the normalised text up to the separator before the answer."""
    offsets, data = bytes_of(whole)
    separators = np.flatnonzero(data == SEPARATOR)
    if len(separators) != 2 * len(whole):  # the data holds the character itself
        return hashes(normalised(text.prompt()))
    view, digest = memoryview(data.data), xxhash.xxh3_128_digest
    ends = zip(offsets[:-1].tolist(), separators[1::2].tolist(), strict=True)
    joined = b"".join([digest(view[start:end]) for start, end in ends])
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 2)


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
