"""Reads several datasets as one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError


def common_schema(folders: Sequence[str | Path]) -> pa.Schema:
    """Returns the common schema of several datasets.

    Args:
        folders: Folders of the datasets.

    Raises:
        UserError: If columns or their types differ.
    """
    schemas = [tables.schema(folder).remove_metadata() for folder in folders]
    for other in schemas:
        if other.names != schemas[0].names:
            columns = f"{', '.join(schemas[0].names)} and {', '.join(other.names)}"
            raise UserError(f"the shards have different columns: {columns}. All files need the same columns")
    try:
        # A column that is null in all rows of a shard has the type null there.
        return pa.unify_schemas(schemas)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"the shards have different column types: {error}. All files need the same columns") from None


def batches_of(folder: str | Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Streams one of the datasets, cast to the result of `common_schema`."""
    for batch in tables.batches(folder):
        yield batch.cast(schema)
