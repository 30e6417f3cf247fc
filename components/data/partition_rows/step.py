"""Distributes the rows of all shards to partitions by their text."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.filter_clean.cleaning import Cleaner
from llm_finetune.components.data.filter_clean.settings import Settings
from llm_finetune.components.data.load_dataset.step import Facts
from llm_finetune.components.data.sources.hub import LICENSE_SEPARATOR
from llm_finetune.components.data.sources.origins import combined_revision
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import atomic_folder, content_hash
from llm_finetune.components.shared.joined import batches_of, common_schema
from llm_finetune.components.shared.partitions import MAX_SHARDS, partition_folder
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.shared.rows.duplicates import hash_texts, normalize_text
from llm_finetune.components.shared.rows.layouts import detect_layout
from llm_finetune.components.shared.rows.text import check_columns


def partition_rows(
    shards: Sequence[str | Path], partitions: str | Path, parts: int, settings: Settings
) -> list[dict[str, int]]:
    """Writes each row to the partition of its text.

    Args:
        shards: Folders with the rows.
        partitions: Folder to write; partition 3 is the dataset in `00003`.
        parts: Number of partitions.
        settings: Settings of Filter & Clean, which decide which texts are equal.

    Returns:
        Number and rows of each partition.

    Raises:
        UserError: If a column is missing or differs between shards, or a partition is empty.
    """
    if not 1 <= parts <= MAX_SHARDS:
        raise UserError(f"parts = {parts}: must be between 1 and {MAX_SHARDS}")
    schema = common_schema(shards)
    fields = detect_layout(schema, settings)
    check_columns(schema, fields)
    cleaner = Cleaner(fields)

    def split(batch: pa.RecordBatch) -> list[tuple[int, pa.RecordBatch]]:
        part = partition_of(cleaner.clean(batch).text.full_text(), parts)
        return [(number, batch.filter(pa.array(part == number))) for number in np.unique(part).tolist()]

    with atomic_folder(partitions) as folder, ExitStack() as open_writers:
        writers = [
            open_writers.enter_context(tables.ShardWriter(partition_folder(folder, part), schema))
            for part in range(parts)
        ]
        batches = chain.from_iterable(batches_of(shard, schema) for shard in shards)
        for number, rows in chain.from_iterable(tables.in_parallel(split, batches)):
            writers[number].write(rows)
        counts = [writer.rows for writer in writers]
        check_accounted("Partition Rows", sum(tables.count_rows(shard) for shard in shards), sum(counts))
        if not all(counts):
            raise UserError(
                f"with {sum(counts):,} rows, {counts.count(0)} of {parts} partitions are empty; use fewer shards"
            )
    return [{"part": part, "rows": count} for part, count in enumerate(counts)]


def partition_of(texts: pa.StringArray, parts: int) -> np.ndarray:
    """Returns the partition of each text; equal for duplicates, and the same on every machine."""
    # The other half of the hash decides the side in Train/Val Split.
    return (hash_texts(normalize_text(texts))[:, 1] % np.uint64(parts)).astype(np.int64)


def facts(
    partitions: str | Path, metadata: Sequence[Mapping[str, object]], written: Sequence[Mapping[str, int]]
) -> Facts:
    """Returns the facts of all shards as facts of one dataset.

    Args:
        partitions: Folder with the partitions.
        metadata: Metadata of each shard, as recorded by Load Dataset.
        written: Result of `partition_rows`.
    """
    names = [str(shard.get("source", "")) for shard in metadata]
    revisions = {f"{number} {names[number]}": str(shard.get("revision", "")) for number, shard in enumerate(metadata)}
    return Facts(
        rows=sum(part["rows"] for part in written),
        columns=tables.schema(partition_folder(partitions, 0)).names,
        source=names[0] if len(names) == 1 else f"{names[0]}, with {len(names) - 1:,} more shards",
        revision=combined_revision(revisions),
        license=LICENSE_SEPARATOR.join(dict.fromkeys(str(shard.get("license", "")) for shard in metadata)),
        sources=[],
        content_hash=content_hash(partitions),
    )
