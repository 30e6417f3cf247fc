"""Column types of JSON rows: inferred, and widened when later rows need it."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import as_json, as_text, is_text

EMPTY_STRUCT_FIELD = pa.field("_", pa.null())  # added to structs without fields, which Parquet cannot store
MAX_STRUCT_FIELDS = 500  # a struct with more fields is stored as JSON text: each field costs space in every row
JSON_KIND = b"json"  # key in a field's metadata: the text column holds JSON values of this kind


class TypesWidened(Exception):
    """Later rows need wider column types. The caller reads again with `schema`."""

    def __init__(self, schema: pa.Schema) -> None:
        """Stores the schema that fits all rows so far."""
        super().__init__("types widened")
        self.schema = schema


def stable_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields batches while their schema is unchanged.

    After the first change nothing more is yielded, but all batches are read, so that one restart is enough.

    Args:
        batches: Each has the schema of the batch before, or a wider one.

    Yields:
        Batches with one schema.

    Raises:
        TypesWidened: At the end, with the schema that fits all rows.
    """
    schema, is_first = None, True
    for batch in batches:
        is_first = is_first and (schema is None or batch.schema.equals(schema, check_metadata=True))
        schema = batch.schema
        if is_first:
            yield batch
    if not is_first:
        assert schema is not None
        raise TypesWidened(schema)


def plain_types(schema: pa.Schema, name: str, max_depth: int) -> pa.Schema:
    """Returns a schema in which dates are text, as they are in JSON.

    Args:
        schema: Schema that pyarrow inferred.
        name: File name for error messages.
        max_depth: Maximum levels of nesting.

    Returns:
        The schema to parse with.

    Raises:
        UserError: If a column is nested more deeply than `max_depth`.
    """
    fields = [pa.field(field.name, _plain_type(field.type, name, field.name, max_depth)) for field in schema]
    return pa.schema(
        [as_json_text(field) if _max_fields(field.type) > MAX_STRUCT_FIELDS else field for field in fields]
    )


def widen(old: pa.Schema, new: pa.Schema) -> pa.Schema | None:
    """Returns a schema that fits the rows of both, or None if a column has values of different kinds.

    No Arrow type keeps both 42 and 3.5 as written, so a column with integers and fractions becomes JSON text. A
    column of objects with more than `MAX_STRUCT_FIELDS` keys becomes JSON text too.
    """
    fields = {field.name: field for field in old}
    for field in new:
        kind = _widen_field(fields.get(field.name, field), field)
        if kind is None:
            return None
        fields[field.name] = kind
    return pa.schema(list(fields.values()))


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Casts rows to a schema that `widen` returned for them."""
    columns = []
    for field in schema:
        column, own = batch.column(field.name), batch.schema.field(field.name)
        if json_kind(field) and not json_kind(own):
            columns.append(as_json(column) if pa.types.is_nested(own.type) else as_text(column))
        else:  # a cast to the same type fails for structs without fields
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def as_json_text(field: pa.Field) -> pa.Field:
    """Returns the field of a text column that stores the values of `field` as JSON."""
    return pa.field(field.name, pa.string(), metadata={JSON_KIND: kind_of(field)})


def json_kind(field: pa.Field) -> str:
    """Returns the kind of the JSON values in a text column, or an empty string for other columns."""
    return str((field.metadata or {}).get(JSON_KIND, b""), "utf-8")


def kind_of(field: pa.Field) -> str:
    """Returns the kind of a column's values, as used in error messages."""
    return json_kind(field) or kind_of_type(field.type)


def kind_of_type(kind: pa.DataType) -> str:
    """Returns the kind of a type's values, as used in error messages."""
    names = {"null": pa.types.is_null, "true or false": pa.types.is_boolean, "text": is_text,
             "a list": pa.types.is_list, "an object": pa.types.is_struct, "a number": _is_number}  # fmt: skip
    return next((name for name, is_of_kind in names.items() if is_of_kind(kind)), str(kind))


def is_json_schema(schema: pa.Schema) -> bool:
    """Returns whether all types are types that JSON rows can have."""
    return all(_is_json_type(field.type) for field in schema)


def _is_json_type(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_json_type(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_json_type(part.type) for part in kind)
    return kind in (pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _plain_type(kind: pa.DataType, name: str, column: str, max_depth: int) -> pa.DataType:
    if max_depth == 0:
        raise UserError(f"{name}: column {column!r} is nested too deeply")
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type, name, column, max_depth - 1))
    if pa.types.is_struct(kind):
        parts = [pa.field(part.name, _plain_type(part.type, name, column, max_depth - 1)) for part in kind]
        return pa.struct(parts or [EMPTY_STRUCT_FIELD])
    return kind


def _widen_field(old: pa.Field, new: pa.Field) -> pa.Field | None:
    if json_kind(old) or json_kind(new):
        kinds = [kind_of(field) for field in (old, new) if not pa.types.is_null(field.type)]
        same = len(set(kinds)) == 1
        return as_json_text(old if json_kind(old) else new) if same else None
    kind = _widen_type(old.type, new.type)
    if kind is None:
        return None
    field = pa.field(old.name, kind)
    loses_integers = _loses_integers(old.type, kind) or _loses_integers(new.type, kind)
    return (
        as_json_text(field) if loses_integers or (_max_fields(kind) > MAX_STRUCT_FIELDS and kind != old.type) else field
    )


def _widen_type(old: pa.DataType, new: pa.DataType) -> pa.DataType | None:
    if old == new or pa.types.is_null(new):
        return old
    if pa.types.is_null(old):
        return new
    if is_text(old) and is_text(new):
        return pa.string()
    if pa.types.is_integer(old) and pa.types.is_integer(new):
        return pa.int64()
    if _is_number(old) and _is_number(new):
        return pa.float64()
    if pa.types.is_list(old) and pa.types.is_list(new):
        item = _widen_type(old.value_type, new.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        parts = {part.name: part.type for part in old}
        for part in new:
            kind = _widen_type(parts.get(part.name, pa.null()), part.type)
            if kind is None:
                return None
            parts[part.name] = kind
        if len(parts) > 1 and parts.get(EMPTY_STRUCT_FIELD.name) == EMPTY_STRUCT_FIELD.type:
            del parts[EMPTY_STRUCT_FIELD.name]
        return pa.struct(list(parts.items()))
    return None


def _loses_integers(old: pa.DataType, new: pa.DataType) -> bool:
    """Returns whether integers of type `old` can change their value in type `new`."""
    if pa.types.is_list(old) and pa.types.is_list(new):
        return _loses_integers(old.value_type, new.value_type)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        return any(
            _loses_integers(part.type, new.field(part.name).type)
            for part in old
            if part.name != EMPTY_STRUCT_FIELD.name
        )
    return bool(pa.types.is_integer(old) and (pa.types.is_floating(new) or (pa.types.is_uint64(old) and old != new)))


def _max_fields(kind: pa.DataType) -> int:
    """Returns the number of fields of the largest struct in a type."""
    if pa.types.is_list(kind):
        return _max_fields(kind.value_type)
    if pa.types.is_struct(kind):
        return max([int(kind.num_fields), *(_max_fields(part.type) for part in kind)])
    return 0
