"""JSON columns that no Arrow type holds as they are written (42 beside 3.5): read as the text of their values."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.sources import explain
from llm_finetune.components.data.sources.types import held_kind


def as_held(block: bytes, schema: pa.Schema, place: explain.Place) -> bytes:
    """Returns a block with text in the columns that hold JSON.

    Numbers become what `as_text` makes of a column of their own, so that a row's text does not depend on other rows.

    Args:
        block: Whole lines.
        schema: Columns and types, some of them perhaps held as JSON.
        place: Where the lines come from.

    Raises:
        UserError: If a line is no row, or a value of such a column is of another kind than those before.
    """
    kinds = {field.name: held_kind(field) for field in schema if held_kind(field)}
    if not kinds:
        return block
    lines = block.split(b"\n")
    for i, line in enumerate(lines):
        if line.strip():
            number = place.first_line + i
            row = explain.row(line, number, place)
            for name, kind in kinds.items():
                if row.get(name) is not None:
                    explain.check_kind(name, row[name], kind, number, place)
                    row[name] = _text(row[name])
            lines[i] = json.dumps(row, ensure_ascii=False).encode()
    return b"\n".join(lines)


def changed(table: pa.Table, block: bytes, place: explain.Place) -> list[str]:
    """Names the columns of fractions in which a number is written as a whole one.

    Args:
        table: The rows of a block.
        block: Its lines.
        place: Where they come from.
    """
    whole = {field.name: _whole_rows(table.column(field.name)) for field in table.schema if _has_floats(field.type)}
    doubtful = {name: rows for name, rows in whole.items() if len(rows)}
    if not doubtful:
        return []
    kinds = {name: table.schema.field(name).type for name in doubtful}
    found: list[str] = []
    lines = explain.lines(block, place)
    for i in np.unique(np.concatenate(list(doubtful.values()))).tolist():
        number, line = lines[i]
        row = _row(number, line, place)
        found += [name for name in kinds if name not in found and _is_whole(row.get(name), kinds[name])]
        if len(found) == len(kinds):
            break
    return found


def _row(number: int, line: bytes, place: explain.Place) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:  # told with its place
        return explain.row(line, number, place)
    return row


def _text(value: Any) -> str | None:
    if isinstance(value, float):
        return repr(value) if value == value else None
    return json.dumps(value, ensure_ascii=False)


def _has_floats(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_floats(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_floats(part.type) for part in kind)
    return pa.types.is_floating(kind)


def _whole_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the rows that may hold a whole number, where one is anywhere in the column."""
    if pa.types.is_nested(column.type):
        any_whole = any(len(_whole(leaf)) for chunk in column.chunks for leaf in _leaves(chunk))
        return np.arange(len(column) if any_whole else 0)
    return _whole(column)


def _whole(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.indices_nonzero(pc.equal(pc.floor(values), values)).to_numpy()


def _leaves(array: pa.Array) -> Iterator[pa.Array]:
    """Yields the fractions of a column, those in lists and objects too."""
    if pa.types.is_list(array.type):
        yield from _leaves(array.flatten())
    elif pa.types.is_struct(array.type):
        for part in array.flatten():
            yield from _leaves(part)
    elif pa.types.is_floating(array.type):
        yield array


def _is_whole(value: Any, kind: pa.DataType) -> bool:
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(_is_whole(item, kind.value_type) for item in value)
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return any(_is_whole(value.get(part.name), part.type) for part in kind)
    return isinstance(value, int) and pa.types.is_floating(kind)
