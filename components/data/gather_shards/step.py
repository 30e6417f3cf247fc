"""Concatenates datasets."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.joined import batches_of, common_schema
from llm_finetune.components.shared.row_counts import check_accounted

ROW = "row"


def gather_shards(
    shards: Sequence[str | Path], dataset: str | Path, text_row_counts: Sequence[int] = ()
) -> dict[str, object]:
    """Writes the rows of all shards, in order, as one dataset.

    Args:
        shards: Folders of the datasets.
        dataset: Folder to write.
        text_row_counts: Per shard, the number of text rows that its column `row` refers to; empty if there is no such
            column.

    Returns:
        `rows`, `columns` and `content_hash` for the artifact's metadata.

    Raises:
        UserError: If a column differs between the shards.
    """
    schema = common_schema(shards)
    shifts = [0, *accumulate(text_row_counts)]
    with tables.ShardWriter(dataset, schema) as writer:
        for number, shard in enumerate(shards):
            for batch in tables.read_ahead(batches_of(shard, schema)):
                writer.write(_shift_row_numbers(batch, shifts[number]) if text_row_counts else batch)
        check_accounted("Gather Shards", sum(tables.count_rows(shard) for shard in shards), writer.rows)
        _copy_other_files(Path(shards[0]), writer.folder)
    return {"rows": writer.rows, "columns": schema.names, "content_hash": content_hash(dataset)}


def partition_numbers(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the partition number in each mapping as text; empty if it has none."""
    # Numbers passed through JSON are floats.
    return [str(int(part["part"])) if "part" in part else "" for part in parts]


def text_row_counts(metadata: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the number of text rows behind each token dataset; an empty list for other datasets.

    Args:
        metadata: Metadata of each shard. Packed tokens have no column `row`.
    """
    if any("documents" not in shard or shard.get("packing") for shard in metadata):
        return []
    return [int(shard["documents"]) for shard in metadata]


def merge_metadata(metadata: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Merges the metadata of all shards: counts are summed, equal values are kept.

    Args:
        metadata: Metadata of each shard.

    Returns:
        Values by name, without values that are not counts and differ between shards.
    """
    facts: dict[str, object] = {}
    for name in metadata[0] if metadata else ():
        values = [shard.get(name) for shard in metadata]
        if name in _COUNTS:
            facts[name] = sum(int(value or 0) for value in values)
        elif name in _COUNTS_BY_REASON:
            counts = [value or {} for value in values]
            reasons = dict.fromkeys(reason for count in counts for reason in count)
            facts[name] = {reason: sum(int(count.get(reason, 0)) for count in counts) for reason in reasons}
        elif all(value == values[0] for value in values):
            facts[name] = values[0]
    return facts


_COUNTS = (
    "documents",
    "tokens",
    "supervised_tokens",
    "dropped_overlength",
    "dropped_prompt_only",
    "cut",
    "untrained_answers",
    "unused_input",
    "rows_in",
    "repaired",
)
_COUNTS_BY_REASON = ("dropped", "skipped", "personal_data", "converted")


def _shift_row_numbers(batch: pa.RecordBatch, shift: int) -> pa.RecordBatch:
    place = batch.schema.get_field_index(ROW)
    return batch.set_column(place, batch.schema.field(place), pc.add(batch.column(place), shift))


def _copy_other_files(first: Path, folder: Path) -> None:
    for file in first.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        elif file.suffix != ".parquet":
            shutil.copy(file, folder / file.name)
