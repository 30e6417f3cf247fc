"""JSON columns that no Arrow type can hold as written (42 and 3.5): stored as JSON text."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.data.sources import json_errors
from llm_finetune.components.data.sources.column_types import json_kind


def encode_json_columns(block: bytes, schema: pa.Schema, place: json_errors.BlockPosition) -> bytes:
    """Replaces values by their JSON text in the columns that are stored as JSON.

    A number becomes the same text as in a column of numbers (`as_text`), so that a row's text does not depend on other
    rows.

    Args:
        block: Complete lines.
        schema: Columns and types.
        place: Position of the block, for error messages.

    Raises:
        UserError: If a line is not a row, or a value differs in kind from the values before it.
    """
    kinds = {field.name: json_kind(field) for field in schema if json_kind(field)}
    if not kinds:
        return block
    lines = block.split(b"\n")
    for i, line in enumerate(lines):
        if line.strip():
            number = place.first_line + i
            row = json_errors.parse_row(line, number, place)
            for name, kind in kinds.items():
                if row.get(name) is not None:
                    json_errors.check_kind(name, row[name], kind, number, place)
                    row[name] = _value_text(row[name])
            lines[i] = json.dumps(row, ensure_ascii=False).encode()
    return b"\n".join(lines)


def float_columns_with_integers(table: pa.Table, block: bytes, place: json_errors.BlockPosition) -> list[str]:
    """Returns the floating-point columns in which a number is written as an integer.

    Args:
        table: The rows of a block.
        block: Lines of the block.
        place: Position of the block, for error messages.
    """
    rows_by_name = {
        field.name: _candidate_rows(table.column(field.name)) for field in table.schema if _has_floats(field.type)
    }
    candidates = {name: rows for name, rows in rows_by_name.items() if len(rows)}
    if not candidates:
        return []
    kinds = {name: table.schema.field(name).type for name in candidates}
    found: list[str] = []
    lines = json_errors.numbered_lines(block, place)
    for i in np.unique(np.concatenate(list(candidates.values()))).tolist():
        number, line = lines[i]
        row = _parse_row(number, line, place)
        found += [name for name in kinds if name not in found and _has_integer(row.get(name), kinds[name])]
        if len(found) == len(kinds):
            break
    return found


def _parse_row(number: int, line: bytes, place: json_errors.BlockPosition) -> dict[str, object]:
    try:
        row: dict[str, object] = json.loads(line)
    except ValueError:  # raises the error with its position
        return json_errors.parse_row(line, number, place)
    return row


def _value_text(value: object) -> str | None:
    if isinstance(value, float):
        return repr(value) if value == value else None
    return json.dumps(value, ensure_ascii=False)


def _has_floats(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_floats(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_floats(part.type) for part in kind)
    return bool(pa.types.is_floating(kind))


def _candidate_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the rows that can contain a number written as an integer; all rows of a nested column."""
    if pa.types.is_nested(column.type):
        any_integral = any(len(_integral(leaf)) for chunk in column.chunks for leaf in _float_arrays(chunk))
        return np.arange(len(column) if any_integral else 0)
    return _integral(column)


def _integral(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    indices: np.ndarray = pc.indices_nonzero(pc.equal(pc.floor(values), values)).to_numpy()
    return indices


def _float_arrays(array: pa.Array) -> Iterator[pa.Array]:
    """Yields the floating-point arrays of a column, including those in lists and structs."""
    if pa.types.is_list(array.type):
        yield from _float_arrays(array.flatten())
    elif pa.types.is_struct(array.type):
        for part in array.flatten():
            yield from _float_arrays(part)
    elif pa.types.is_floating(array.type):
        yield array


def _has_integer(value: object, kind: pa.DataType) -> bool:
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(_has_integer(item, kind.value_type) for item in value)
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return any(_has_integer(value.get(part.name), part.type) for part in kind)
    return isinstance(value, int) and pa.types.is_floating(kind)
