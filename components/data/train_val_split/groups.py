"""Finds rows that must be on the same side: duplicates, near-duplicates, and rows of one group."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from llm_finetune.components.data.train_val_split.settings import Settings
from llm_finetune.components.data.train_val_split.shuffle import Shuffle
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import as_text, empty_texts, trim
from llm_finetune.components.shared.rows.duplicates import (
    NearDuplicates,
    hash_texts,
    keyed_hash,
    normalize_text,
    string_buffers,
)
from llm_finetune.components.shared.rows.text import Texts, row_texts
from llm_finetune.components.shared.settings import FieldSettings

# Near-duplicates are searched up to this number of rows: about a millisecond and 3 KB per row.
MAX_NEAR_ROWS = 100_000
# A row with this many indexed near-duplicates is not indexed itself, so that the time stays linear in dense data.
MAX_NEIGHBORS = 32
CLOSE_MARGIN = 0.1
MAX_STRATA = 1_000
SEPARATOR = 0x1F  # between the fields of `Texts.full_text`


@dataclass
class RowKeys:
    """Hashes, groups and near-duplicate pairs of all rows, in the order of the dataset.

    Attributes:
        content: 128-bit hash of the row's normalized text, shape [rows, 2].
        prompt: The same without the answer.
        group: Hash of the row's value in `group_key`, shape [rows]; None without `group_key`.
        has_group: Whether that value is not null.
        pairs: Near-duplicates, as pairs of row numbers, shape [pairs, 2].
        close: Pairs slightly below the threshold.
        near_checked: Whether near-duplicates were searched.
        strata: Stratum number of the row, shape [rows]; None without `stratify_key`.
        stratum_names: Values of `stratify_key` by stratum number.
    """

    content: np.ndarray
    prompt: np.ndarray
    group: np.ndarray | None
    has_group: np.ndarray | None
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    close: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    near_checked: bool = False
    strata: np.ndarray | None = None
    stratum_names: list[str] = field(default_factory=list)


def read_keys(dataset: str | Path, settings: Settings, shuffle: Shuffle) -> RowKeys:
    """Reads a dataset once, and distributes its rows to the buckets of the shuffle.

    Args:
        dataset: Folder with the rows.
        settings: The card's settings. If the dataset has none of the text columns, all columns count as text.
        shuffle: Receives the rows.

    Returns:
        Hashes and pairs.
    """
    check_near = settings.near_threshold and tables.count_rows(dataset) <= MAX_NEAR_ROWS
    near = NearDuplicates(settings.near_threshold) if check_near else None
    pairs: list[tuple[int, int]] = []
    close: list[tuple[int, int]] = []
    parts = []
    names: dict[str, int] = {}
    rows = 0
    read_batch = partial(_read_batch, settings=settings, shuffle=shuffle, for_near=near is not None)
    for part, keys, buckets in tables.in_parallel(read_batch, tables.batches(dataset)):
        shuffle.add(buckets, keys)
        if near and part.own is not None:
            _add_pairs(near, part.own, rows, pairs, close)
            part.own = None
        if part.stratum is not None:
            part.strata = np.array([names.setdefault(name, len(names)) for name in part.names], np.int64)[part.stratum]
        rows += len(part.content)
        parts.append(part)
    if len(names) > MAX_STRATA:
        raise UserError(
            f"stratify_key = {settings.stratify_key!r} has {len(names):,} different values, more than "
            f"{MAX_STRATA:,}. To keep equal values on one side, use group_key"
        )
    return RowKeys(
        _concatenate([part.content for part in parts]),
        _concatenate([part.prompt for part in parts]),
        np.concatenate([part.group for part in parts]) if settings.group_key and parts else None,
        np.concatenate([part.has_group for part in parts]) if settings.group_key and parts else None,
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array(close, np.int64).reshape(-1, 2),
        near is not None,
        _stratum_ranks(names)[np.concatenate([part.strata for part in parts])]
        if settings.stratify_key and parts
        else None,
        sorted(names),
    )


@dataclass
class _BatchKeys:
    """Values of one batch; see `RowKeys`. `own` is the text in which near-duplicates are searched."""

    content: np.ndarray
    prompt: np.ndarray
    group: np.ndarray | None = None
    has_group: np.ndarray | None = None
    own: pa.StringArray | None = None
    stratum: np.ndarray | None = None
    strata: np.ndarray | None = None
    names: list[str] = field(default_factory=list)


def _stratum_ranks(names: dict[str, int]) -> np.ndarray:
    """Returns the rank of each name in sorted order, which does not depend on the order of the rows."""
    place = {name: rank for rank, name in enumerate(sorted(names))}
    return np.array([place[name] for name in names], np.int64)


def _read_batch(
    batch: pa.RecordBatch, settings: Settings, shuffle: Shuffle, for_near: bool
) -> tuple[_BatchKeys, np.ndarray, list[pa.RecordBatch]]:
    text = _texts(batch, settings)
    whole = normalize_text(text.full_text())
    part = _BatchKeys(hash_texts(whole), _prompt_hashes(whole, text))
    if settings.group_key:
        values = as_text(batch.column(settings.group_key))
        part.group = hash_texts(values.fill_null(""))[:, 0]
        part.has_group = values.is_valid().to_numpy(zero_copy_only=False)
    if for_near:
        part.own = normalize_text(text.distinctive_text())
    if settings.stratify_key:
        encoded = as_text(batch.column(settings.stratify_key)).fill_null("").dictionary_encode()
        part.stratum = encoded.indices.to_numpy(zero_copy_only=False)
        part.names = encoded.dictionary.to_pylist()
    keys = keyed_hash(part.content[:, 1], settings.shuffle_seed)
    return part, keys, shuffle.partition(batch, keys)


def _prompt_hashes(whole: pa.StringArray, text: Texts) -> np.ndarray:
    """Returns hashes of the prompts: the normalized text up to the separator before the answer."""
    offsets, data = string_buffers(whole)
    separators = np.flatnonzero(data == SEPARATOR)
    if len(separators) != 2 * len(whole):  # the data contains the separator
        return hash_texts(normalize_text(text.prompt()))
    view, digest = memoryview(data.data), xxhash.xxh3_128_digest
    ends = zip(offsets[:-1].tolist(), separators[1::2].tolist(), strict=True)
    joined = b"".join([digest(view[start:end]) for start, end in ends])
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def group_labels(rows: RowKeys) -> np.ndarray:
    """Returns the group number of each row: connected components of equal rows, near-duplicates and equal groups.

    Args:
        rows: Result of `read_keys`.

    Returns:
        Integers starting at 0, shape [rows].
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
    from scipy.sparse import coo_array  # the import takes half a second; skipped if not needed
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate(joined)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(numbers), len(numbers)))
    component: np.ndarray = connected_components(graph, directed=False)[1]
    return component.astype(np.int64)


def _same_content(content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first row of each distinct content, and the content number of each row."""
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: the first of equal rows comes first
    ordered = content[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    same = np.empty(len(order), np.int64)
    same[order] = np.cumsum(new) - 1
    return order[new], same


def _add_pairs(
    near: NearDuplicates, text: pa.StringArray, start: int, pairs: list[tuple[int, int]], close: list[tuple[int, int]]
) -> None:
    for row, sketch in enumerate(near.sketches(text), start):
        found = near.similar(sketch, near.threshold - CLOSE_MARGIN)
        alike = [(row, other) for other, similarity in found if similarity >= near.threshold]
        pairs += alike
        close += [(row, other) for other, similarity in found if similarity < near.threshold]
        if len(alike) < MAX_NEIGHBORS:
            near.insert(row, sketch)


def _texts(batch: pa.RecordBatch, fields: FieldSettings) -> Texts:
    if fields.chat_key:
        return row_texts(batch, fields)
    names = batch.schema.names
    keys = (fields.instruction_key, fields.input_key, fields.output_key)
    if any(key in names for key in keys):
        return Texts(*(trim(batch.column(key)) if key in names else empty_texts(batch.num_rows) for key in keys))
    everything = pc.binary_join_element_wise(*(trim(column) for column in batch.columns), "\x1f")
    return Texts(everything, empty_texts(batch.num_rows), empty_texts(batch.num_rows))


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)
