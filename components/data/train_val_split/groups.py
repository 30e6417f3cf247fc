"""Rows that must stay together: duplicates, near-duplicates, and rows of one group."""

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
from llm_finetune.components.shared.rows.duplicates import NearDuplicates, bytes_of, hashes, mixed, normalised
from llm_finetune.components.shared.rows.text import FieldSettings, Texts, as_text, empty, texts, trimmed

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
    strata: np.ndarray | None = None
    stratum_names: list[str] = field(default_factory=list)


def read(dataset: str | Path, settings: Settings, shuffle: Shuffle) -> Rows:
    """Reads a dataset once, and deals its rows on the way.

    Args:
        dataset: Folder with the rows.
        settings: What stays together. If the dataset has none of the text's columns, every column counts as text.
        shuffle: Where the rows go.

    Returns:
        Hashes and pairs.
    """
    look_for_pairs = settings.near_threshold and tables.count_rows(dataset) <= NEAR_ROWS
    near = NearDuplicates(settings.near_threshold) if look_for_pairs else None
    pairs: list[tuple[int, int]] = []
    close: list[tuple[int, int]] = []
    parts = []
    names: dict[str, int] = {}
    rows = 0
    look = partial(_look_at, settings=settings, shuffle=shuffle, with_own=near is not None)
    for part, keys, dealt in tables.in_parallel(look, tables.batches(dataset)):
        shuffle.add(dealt, keys)
        if near and part.own is not None:
            _add_pairs(near, part.own, rows, pairs, close)
            part.own = None
        if part.stratum is not None:
            part.strata = np.array([names.setdefault(name, len(names)) for name in part.names], np.int64)[part.stratum]
        rows += len(part.content)
        parts.append(part)
    if len(names) > MOST_STRATA:
        raise UserError(
            f"stratify_key = {settings.stratify_key!r} has {len(names):,} different values, more than "
            f"{MOST_STRATA:,}: it is no kind of row. To keep equal values on one side, use group_key"
        )
    return Rows(
        _stacked([part.content for part in parts]),
        _stacked([part.prompt for part in parts]),
        np.concatenate([part.group for part in parts]) if settings.group_key and parts else None,
        np.concatenate([part.has_group for part in parts]) if settings.group_key and parts else None,
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array(close, np.int64).reshape(-1, 2),
        near is not None,
        _ranks(names)[np.concatenate([part.strata for part in parts])] if settings.stratify_key and parts else None,
        sorted(names),
    )


@dataclass
class _Part:
    """What is read of one batch; the attributes are those of `Rows`, and `own` is the text of near-duplicates."""

    content: np.ndarray
    prompt: np.ndarray
    group: np.ndarray | None = None
    has_group: np.ndarray | None = None
    own: pa.StringArray | None = None
    stratum: np.ndarray | None = None
    strata: np.ndarray | None = None
    names: list[str] = field(default_factory=list)


def _ranks(names: dict[str, int]) -> np.ndarray:
    """Returns for each number the place of its name among all, which does not depend on the order of the rows."""
    place = {name: rank for rank, name in enumerate(sorted(names))}
    return np.array([place[name] for name in names], np.int64)


def _look_at(
    batch: pa.RecordBatch, settings: Settings, shuffle: Shuffle, with_own: bool
) -> tuple[_Part, np.ndarray, list[pa.RecordBatch]]:
    text = _texts(batch, settings)
    whole = normalised(text.whole())
    part = _Part(hashes(whole), _prompt_hashes(whole, text))
    if settings.group_key:
        values = as_text(batch.column(settings.group_key))
        part.group = hashes(values.fill_null(""))[:, 0]
        part.has_group = values.is_valid().to_numpy(zero_copy_only=False)
    if with_own:
        part.own = normalised(text.own())
    if settings.stratify_key:
        encoded = as_text(batch.column(settings.stratify_key)).fill_null("").dictionary_encode()
        part.stratum = encoded.indices.to_numpy(zero_copy_only=False)
        part.names = encoded.dictionary.to_pylist()
    keys = mixed(part.content[:, 1], settings.shuffle_seed)
    return part, keys, shuffle.dealt(batch, keys)


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
