"""Column types of JSON rows: made plain, and widened when later rows need it."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import as_json, as_text
from llm_finetune.components.shared.rows.text import is_text

NOTHING = pa.field("_", pa.null())  # stands in objects without fields, which Parquet can't write
MOST_KEYS = 500  # of an object with Arrow fields of its own: each takes room in every row
HELD = b"json"  # in a field's metadata: it is text that holds JSON values, of this kind


class TypesWidened(Exception):
    """Rows further on need wider types than the first ones; reading begins again with `schema`."""

    def __init__(self, schema: pa.Schema) -> None:
        """Carries the schema that all rows so far fit."""
        super().__init__("types widened")
        self.schema = schema


def settled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Passes batches on as long as their schema stays the same.

    After the first change nothing is passed on any more, but all is read, so that reading begins again only once.

    Args:
        batches: Each of the schema before, or of a wider one.

    Yields:
        Batches of one schema.

    Raises:
        TypesWidened: At the end, with the schema that all rows fit.
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


def plain_types(schema: pa.Schema, name: str, deepest: int) -> pa.Schema:
    """Returns a schema in which text that looks like a date stays text.

    Args:
        schema: As pyarrow guessed it.
        name: The file, for messages.
        deepest: Levels of nesting that are allowed.

    Returns:
        The schema to parse with.

    Raises:
        UserError: If a column is nested more deeply.
    """
    fields = [pa.field(field.name, _plain(field.type, name, field.name, deepest)) for field in schema]
    return pa.schema([as_held(field) if _keys(field.type) > MOST_KEYS else field for field in fields])


def widened(old: pa.Schema, new: pa.Schema) -> pa.Schema | None:
    """Returns the schema that rows of both fit, or None where a column changes its kind.

    No type of Arrow has room for 42 beside 3.5 as they are written: such a column becomes text that holds JSON, and
    so does one of objects with ever more keys.
    """
    fields = {field.name: field for field in old}
    for field in new:
        kind = _wider_field(fields.get(field.name, field), field)
        if kind is None:
            return None
        fields[field.name] = kind
    return pa.schema(list(fields.values()))


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns rows in the types of a schema that `widened` gave for theirs."""
    columns = []
    for field in schema:
        column, own = batch.column(field.name), batch.schema.field(field.name)
        if held_kind(field) and not held_kind(own):
            columns.append(as_json(column) if pa.types.is_nested(own.type) else as_text(column))
        else:  # a cast to the same type fails for objects without fields
            columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def as_held(field: pa.Field) -> pa.Field:
    """Returns the field of a column whose values are kept as JSON text."""
    return pa.field(field.name, pa.string(), metadata={HELD: kind_of(field)})


def held_kind(field: pa.Field) -> str:
    """Returns the kind of JSON values that a column of text holds; empty for any other column."""
    return (field.metadata or {}).get(HELD, b"").decode()


def kind_of(field: pa.Field) -> str:
    """Names the kind of a column's values as messages do."""
    return held_kind(field) or kind_of_type(field.type)


def kind_of_type(kind: pa.DataType) -> str:
    """Names the kind of a type's values as messages do."""
    names = {"null": pa.types.is_null, "true or false": pa.types.is_boolean, "text": is_text,
             "a list": pa.types.is_list, "an object": pa.types.is_struct, "a number": _is_number}  # fmt: skip
    return next((name for name, is_of_kind in names.items() if is_of_kind(kind)), str(kind))


def is_json(schema: pa.Schema) -> bool:
    """Tells whether all types are those that JSON rows are given."""
    return all(_is_json(field.type) for field in schema)


def _is_json(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_json(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_json(part.type) for part in kind)
    return kind in (pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string())


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _plain(kind: pa.DataType, name: str, column: str, deepest: int) -> pa.DataType:
    if deepest == 0:
        raise UserError(f"{name}: column {column!r} is nested too deeply")
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type, name, column, deepest - 1))
    if pa.types.is_struct(kind):
        parts = [pa.field(part.name, _plain(part.type, name, column, deepest - 1)) for part in kind]
        return pa.struct(parts or [NOTHING])
    return kind


def _wider_field(old: pa.Field, new: pa.Field) -> pa.Field | None:
    if held_kind(old) or held_kind(new):
        kinds = [kind_of(field) for field in (old, new) if not pa.types.is_null(field.type)]
        same = len(set(kinds)) == 1
        return as_held(old if held_kind(old) else new) if same else None
    kind = _wider(old.type, new.type)
    if kind is None:
        return None
    field = pa.field(old.name, kind)
    changes = _changes(old.type, kind) or _changes(new.type, kind)
    return as_held(field) if changes or (_keys(kind) > MOST_KEYS and kind != old.type) else field


def _wider(old: pa.DataType, new: pa.DataType) -> pa.DataType | None:
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
        item = _wider(old.value_type, new.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        parts = {part.name: part.type for part in old}
        for part in new:
            kind = _wider(parts.get(part.name, pa.null()), part.type)
            if kind is None:
                return None
            parts[part.name] = kind
        if len(parts) > 1 and parts.get(NOTHING.name) == NOTHING.type:
            del parts[NOTHING.name]
        return pa.struct(list(parts.items()))
    return None


def _changes(old: pa.DataType, new: pa.DataType) -> bool:
    """Tells whether whole numbers of a type may be others in a wider one."""
    if pa.types.is_list(old) and pa.types.is_list(new):
        return _changes(old.value_type, new.value_type)
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        return any(_changes(part.type, new.field(part.name).type) for part in old if part.name != NOTHING.name)
    return pa.types.is_integer(old) and (pa.types.is_floating(new) or (pa.types.is_uint64(old) and old != new))


def _keys(kind: pa.DataType) -> int:
    """Returns the number of keys of the type's largest object."""
    if pa.types.is_list(kind):
        return _keys(kind.value_type)
    if pa.types.is_struct(kind):
        return max([kind.num_fields, *(_keys(part.type) for part in kind)])
    return 0
