"""Deals rows out to partitions by their text."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.data.filter_clean.worker import Cleaner
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.duplicates import hashes, normalised
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import whole_folder
from llm_finetune.components.shared.layouts import recognised
from llm_finetune.components.shared.text import check_columns

MOST_PARTS = 128


def partition_rows(raw_dataset: str | Path, partitions: str | Path, parts: int, settings: Settings) -> list[int]:
    """Writes each row to the partition of its text.

    Args:
        raw_dataset: Folder with the rows.
        partitions: Folder to write; partition 3 is the dataset in `00003`.
        parts: Number of partitions.
        settings: Those of Filter & Clean: they decide which texts are the same.

    Returns:
        Rows of each partition.

    Raises:
        UserError: If a column is missing.
    """
    if not 1 <= parts <= MOST_PARTS:
        raise UserError(f"parts = {parts}: 1 to {MOST_PARTS} are possible; each holds a group of rows in memory")
    schema = tables.schema(raw_dataset)
    fields = recognised(schema, settings)
    check_columns(schema, fields)
    cleaner = Cleaner(fields)
    with whole_folder(partitions) as folder, ExitStack() as open_writers:
        writers = [
            open_writers.enter_context(tables.ShardWriter(part_of(folder, part), schema)) for part in range(parts)
        ]
        for batch in tables.read_ahead(tables.batches(raw_dataset)):
            part = partition_of(cleaner.cleaned(batch).text.whole(), parts)
            for number in np.unique(part).tolist():
                writers[number].write(batch.filter(pa.array(part == number)))
        return [writer.rows for writer in writers]


def partition_of(texts: pa.StringArray, parts: int) -> np.ndarray:
    """Returns the partition of each text: the same for texts that are duplicates, on every machine."""
    # Not the half of the hash by which Train/Val Split chooses its rows.
    return (hashes(normalised(texts))[:, 1] % np.uint64(parts)).astype(np.int64)


def part_of(partitions: str | Path, part: int) -> Path:
    """Returns the folder of a partition."""
    return Path(partitions) / f"{part:05}"
