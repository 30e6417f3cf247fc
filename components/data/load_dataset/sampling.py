"""Deterministic random samples in constant memory, the same on every machine."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.duplicates import keyed_hash


def sample_rows(folder: Path, count: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Samples rows of a dataset on disk.

    Args:
        folder: The dataset.
        count: Number of rows; all if there are fewer.
        seed: Seed of the uniform sample without replacement; -1 takes the first rows.

    Yields:
        The sampled rows in their original order.
    """
    if seed < 0:
        yield from take_rows(tables.batches(folder), count)
        return
    rows = tables.count_rows(folder)
    keys = keyed_hash(np.arange(rows, dtype=np.uint64), seed)
    is_sampled = np.zeros(rows, bool)
    is_sampled[np.argpartition(keys, count - 1)[:count] if count < rows else slice(None)] = True
    start = 0
    for batch in tables.batches(folder):
        yield batch.filter(pa.array(is_sampled[start : start + batch.num_rows]))
        start += batch.num_rows


def take_rows(batches: Iterable[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """Yields the first `count` rows and stops reading."""
    for batch in batches:
        yield batch.slice(0, count)
        count -= batch.num_rows
        if count <= 0:
            return


def peek(batches: Iterable[pa.RecordBatch], name: str) -> tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]:
    """Returns the first non-empty batch, and an iterator over all batches from it on.

    Args:
        batches: Record batches of one schema.
        name: Name of the source, for the error message.

    Raises:
        UserError: If there are no rows.
    """
    stream = iter(batches)
    first = next((batch for batch in stream if batch.num_rows), None)
    if first is None:
        raise UserError(f"{name} has no rows")

    def all_batches() -> Iterator[pa.RecordBatch]:
        yield first
        yield from stream

    return first, all_batches()
