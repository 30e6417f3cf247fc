"""Reading several datasets behind one another."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError


def common_schema(folders: Sequence[str | Path]) -> pa.Schema:
    """Returns the columns of all datasets.

    Args:
        folders: Their folders.

    Raises:
        UserError: If they do not have the same columns, or a column has not the same type in all.
    """
    schemas = [tables.schema(folder).remove_metadata() for folder in folders]
    for other in schemas:
        if other.names != schemas[0].names:
            columns = f"{', '.join(schemas[0].names)} and {', '.join(other.names)}"
            raise UserError(f"the shards do not have the same columns: {columns}. Every file must have the same ones")
    try:
        # A column that is null throughout one shard has no type there.
        return pa.unify_schemas(schemas)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"the shards do not have the same columns: {error}. Every file must have the same ones"
        ) from None


def rows_of(folder: str | Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Streams one of the datasets, with the schema that `common_schema` has returned."""
    for batch in tables.batches(folder):
        yield batch.cast(schema)
