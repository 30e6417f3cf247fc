"""So many rows chosen by chance out of any number, in flat memory, the same ones on every machine."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.duplicates import mixed


def chosen(folder: Path, count: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Chooses rows of a dataset on disk.

    Args:
        folder: The dataset.
        count: Rows to choose; all if there are fewer.
        seed: Seed of the choice, in which every set of `count` rows is equally likely; -1 takes the first rows.

    Yields:
        The chosen rows in their old order.
    """
    if seed < 0:
        yield from first_rows(tables.batches(folder), count)
        return
    rows = tables.count_rows(folder)
    keys = mixed(np.arange(rows, dtype=np.uint64), seed)
    is_chosen = np.zeros(rows, bool)
    is_chosen[np.argpartition(keys, count - 1)[:count] if count < rows else slice(None)] = True
    start = 0
    for batch in tables.batches(folder):
        yield batch.filter(pa.array(is_chosen[start : start + batch.num_rows]))
        start += batch.num_rows


def first_rows(batches: Iterable[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """Passes on so many rows and stops reading."""
    for batch in batches:
        yield batch.slice(0, count)
        count -= batch.num_rows
        if count <= 0:
            return


def first_of(batches: Iterable[pa.RecordBatch], name: str) -> tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]:
    """Returns the first batch that has rows, and all batches.

    Args:
        batches: Record batches of one schema.
        name: Where they come from.

    Raises:
        UserError: If there are no rows.
    """
    stream = iter(batches)
    first = next((batch for batch in stream if batch.num_rows), None)
    if first is None:
        raise UserError(f"{name} has no rows")

    def again() -> Iterator[pa.RecordBatch]:
        yield first
        yield from stream

    return first, again()
