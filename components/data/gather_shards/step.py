"""Puts datasets behind one another."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.partition_rows.step import part_of
from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash

ROW = "row"


def gather_shards(
    shards: Sequence[str | Path], dataset: str | Path, part: int = -1, row_of: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """Writes the rows of all shards, in order, as one dataset.

    Args:
        shards: Folders of the datasets.
        dataset: Folder to write.
        part: Partition to take of each; -1 takes the datasets themselves.
        row_of: Datasets that the shards' column `row` numbers the rows of.

    Returns:
        `rows`, `columns` and `content_hash` for the artifact's metadata.

    Raises:
        UserError: If a column differs between the shards, or there is no row at all.
    """
    folders = [part_of(shard, part) if part >= 0 else Path(shard) for shard in shards]
    schema = _common_schema([tables.schema(folder) for folder in folders])
    shifts = [0]
    for other in row_of:
        shifts.append(shifts[-1] + tables.count_rows(other))
    with tables.ShardWriter(dataset, schema) as writer:
        for number, folder in enumerate(folders):
            for batch in _rows(folder, schema):
                writer.write(_shifted(batch, shifts[number]) if row_of else batch)
        if not writer.rows:
            raise UserError(f"{len(folders)} shards were gathered, and none of them has a row; use fewer shards")
        _copy_beside(folders[0], writer.folder)
    return {"rows": writer.rows, "columns": schema.names, "content_hash": content_hash(dataset)}


def combined(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the metadata of all shards as one: counts are added up, what all share is kept.

    Args:
        metadata: That of each shard.

    Returns:
        Values by name; what differs between the shards and is no count is left out.
    """
    facts: dict[str, Any] = {}
    for name in metadata[0] if metadata else ():
        values = [shard.get(name) for shard in metadata]
        if name in _COUNTS:
            facts[name] = sum(int(value or 0) for value in values)
        elif name in _COUNTS_BY_REASON:
            reasons = dict.fromkeys(reason for value in values for reason in value or {})
            facts[name] = {reason: sum(int((value or {}).get(reason, 0)) for value in values) for reason in reasons}
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


def _common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    try:
        # A column that is null throughout one shard has no type there.
        return pa.unify_schemas([schema.remove_metadata() for schema in schemas])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"the shards do not have the same columns: {error}. Every file must have the same ones"
        ) from None


def _rows(folder: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in tables.read_ahead(tables.batches(folder)):
        if batch.schema.names != schema.names:
            columns = f"{', '.join(batch.schema.names)} and {', '.join(schema.names)}"
            raise UserError(f"the shards do not have the same columns: {columns}")
        yield batch.cast(schema)


def _shifted(batch: pa.RecordBatch, shift: int) -> pa.RecordBatch:
    place = batch.schema.get_field_index(ROW)
    return batch.set_column(place, batch.schema.field(place), pc.add(batch.column(place), shift))


def _copy_beside(first: Path, folder: Path) -> None:
    for file in first.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        elif file.suffix != ".parquet":
            shutil.copy(file, folder / file.name)
