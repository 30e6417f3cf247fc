"""Converts columns of any type to text."""

import json

import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError


def is_text(kind: pa.DataType) -> bool:
    """Returns whether a type is text in any Arrow encoding."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def as_text(column: pa.Array) -> pa.StringArray:
    """Converts a column to text; null stays null.

    Numbers are formatted as in JSON, lists and structs become JSON, NaN becomes null.

    Args:
        column: Values of one type.

    Returns:
        The same number of strings.

    Raises:
        UserError: If the column holds bytes.
    """
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if is_text(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        raise UserError("a text column contains bytes; convert it before loading")
    if pa.types.is_floating(kind):
        values = (None if value is None or value != value else repr(value) for value in column.to_pylist())
        return pa.array(values, pa.string())
    if pa.types.is_nested(kind):
        return pa.array((None if value is None else _as_json(value) for value in column.to_pylist()), pa.string())
    return column.cast(pa.string())


def as_json(column: pa.Array) -> pa.StringArray:
    """Converts structs to JSON without the nulls that Arrow adds for fields of other rows.

    `{"city": "Oslo"}` and `{"zip": 1}` share one Arrow type with both fields; each is written with its own field. Text
    is returned unchanged.

    Args:
        column: Lists, structs or text.

    Returns:
        The same number of strings; null stays null.
    """
    if is_text(column.type) or pa.types.is_null(column.type):
        return as_text(column)
    values = (None if value is None else _as_json(_without_nulls(value)) for value in column.to_pylist())
    return pa.array(values, pa.string())


def trim(column: pa.Array) -> pa.StringArray:
    """Converts a column to text without leading and trailing white space; null becomes empty."""
    text = as_text(column)
    return pc.utf8_trim_whitespace(text.fill_null("") if text.null_count else text)  # fill_null always copies


def empty_texts(rows: int) -> pa.StringArray:
    """Returns `rows` empty strings."""
    return pa.repeat(pa.scalar(""), rows)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    return value
