"""Column types of JSON rows: made plain, and widened when later rows need it."""

import pyarrow as pa

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.text import is_text

NOTHING = pa.field("_", pa.null())  # stands in objects without fields, which Parquet can't write


class TypesWidened(Exception):
    """Rows further on need wider types than the first ones; reading begins again with `schema`."""

    def __init__(self, schema: pa.Schema) -> None:
        """Carries the schema that all rows so far fit."""
        super().__init__("types widened")
        self.schema = schema


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
    return pa.schema([pa.field(field.name, _plain(field.type, name, field.name, deepest)) for field in schema])


def widened(old: pa.Schema, new: pa.Schema) -> pa.Schema | None:
    """Returns the schema that rows of both fit, or None where a column changes its kind."""
    fields = []
    for field in old:
        kind = field.type if field.name not in new.names else _wider(field.type, new.field(field.name).type)
        if kind is None:
            return None
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


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
