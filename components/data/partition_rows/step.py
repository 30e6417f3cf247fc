"""Deals the rows of all shards out to partitions by their text."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.data.filter_clean.worker import Cleaner
from llm_finetune.components.data.load_dataset.step import Facts
from llm_finetune.components.data.sources.hub import AND
from llm_finetune.components.data.sources.origins import combined
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder, content_hash
from llm_finetune.components.shared.joined import common_schema, rows_of
from llm_finetune.components.shared.partitions import MOST_SHARDS, part_of
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.shared.rows.duplicates import hashes, normalised
from llm_finetune.components.shared.rows.layouts import recognised
from llm_finetune.components.shared.rows.text import check_columns


def partition_rows(
    shards: Sequence[str | Path], partitions: str | Path, parts: int, settings: Settings
) -> list[dict[str, int]]:
    """Writes each row to the partition of its text.

    Args:
        shards: Folders with the rows.
        partitions: Folder to write; partition 3 is the dataset in `00003`.
        parts: Number of partitions.
        settings: Those of Filter & Clean: they decide which texts are the same.

    Returns:
        Number and rows of each partition.

    Raises:
        UserError: If a column is missing or differs between the shards, or a partition has no row.
    """
    if not 1 <= parts <= MOST_SHARDS:
        raise UserError(f"parts = {parts}: 1 to {MOST_SHARDS} are possible")
    schema = common_schema(shards)
    fields = recognised(schema, settings)
    check_columns(schema, fields)
    cleaner = Cleaner(fields)

    def dealt(batch: pa.RecordBatch) -> list[tuple[int, pa.RecordBatch]]:
        part = partition_of(cleaner.cleaned(batch).text.whole(), parts)
        return [(number, batch.filter(pa.array(part == number))) for number in np.unique(part).tolist()]

    with atomic_folder(partitions) as folder, ExitStack() as open_writers:
        writers = [
            open_writers.enter_context(tables.ShardWriter(part_of(folder, part), schema)) for part in range(parts)
        ]
        batches = chain.from_iterable(rows_of(shard, schema) for shard in shards)
        for number, rows in chain.from_iterable(tables.in_parallel(dealt, batches)):
            writers[number].write(rows)
        counts = [writer.rows for writer in writers]
        check_accounted("Partition Rows", sum(tables.count_rows(shard) for shard in shards), sum(counts))
        if not all(counts):
            raise UserError(
                f"{sum(counts):,} rows leave {counts.count(0)} of {parts} partitions empty; use fewer shards"
            )
    return [{"part": part, "rows": count} for part, count in enumerate(counts)]


def partition_of(texts: pa.StringArray, parts: int) -> np.ndarray:
    """Returns the partition of each text: the same for texts that are duplicates, on every machine."""
    # Not the half of the hash by which Train/Val Split chooses its rows.
    return (hashes(normalised(texts))[:, 1] % np.uint64(parts)).astype(np.int64)


def whole(partitions: str | Path, metadata: Sequence[Mapping[str, Any]], dealt: Sequence[Mapping[str, int]]) -> Facts:
    """Returns the facts of the shards as those of one dataset that was loaded.

    Args:
        partitions: Folder with the partitions.
        metadata: That of each shard, as Load Dataset has recorded it.
        dealt: What `partition_rows` has returned.
    """
    names = [str(shard.get("source", "")) for shard in metadata]
    revisions = {f"{number} {names[number]}": str(shard.get("revision", "")) for number, shard in enumerate(metadata)}
    return Facts(
        rows=sum(part["rows"] for part in dealt),
        columns=tables.schema(part_of(partitions, 0)).names,
        source=names[0] if len(names) == 1 else f"{names[0]}, with {len(names) - 1:,} more shards",
        revision=combined(revisions),
        licence=AND.join(dict.fromkeys(str(shard.get("licence", "")) for shard in metadata)),
        sources=[],
        content_hash=content_hash(partitions),
    )
