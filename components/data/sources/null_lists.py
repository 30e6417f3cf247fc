"""Lists that hold nothing but null: pyarrow 26's JSON reader gives such a column too few values."""

import pyarrow as pa


def mended(table: pa.Table) -> pa.Table:
    """Returns a table as it was written, where the reader counted one value in a list of several nulls.

    Args:
        table: What `pyarrow.json.read_json` returned, not yet validated.
    """
    for i, field in enumerate(table.schema):
        if _has_null_lists(field.type):
            chunks = [_mended(chunk) for chunk in table.column(i).chunks]
            table = table.set_column(i, field, pa.chunked_array(chunks, field.type))
    return table


def _has_null_lists(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return pa.types.is_null(kind.value_type) or _has_null_lists(kind.value_type)
    return pa.types.is_struct(kind) and any(_has_null_lists(part.type) for part in kind)


def _mended(array: pa.Array) -> pa.Array:
    kind = array.type
    if not _has_null_lists(kind):
        return array
    if pa.types.is_struct(kind):
        parts = [_mended(array.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    offsets = array.offsets
    values = pa.nulls(offsets[-1].as_py()) if pa.types.is_null(kind.value_type) else _mended(array.values)
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
