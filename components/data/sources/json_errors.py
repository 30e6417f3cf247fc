"""Finds the wrong line of a JSON file and explains the error, after the parser rejected a block."""

import json
import re
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llm_finetune.components.data.sources.column_types import kind_of_type
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.pages import cut

CONTEXT_CHARACTERS = 40  # shown on each side of an error


@dataclass(frozen=True)
class BlockPosition:
    """Position of a block of lines.

    Attributes:
        name: File name.
        first_line: Number of the block's first line, starting at 1.
        unit: Name of a line: `line`, or `element` of a JSON array.
    """

    name: str
    first_line: int
    unit: str


def bad_line(block: bytes, place: BlockPosition, reason: str, schema: pa.Schema | None = None) -> UserError:
    """Finds the first line that is not a JSON object or has a value of another kind than the rows before it.

    Args:
        block: Complete lines.
        place: Position of the block.
        reason: The parser's message, used if no line is found.
        schema: Types of the rows before the block, if any.

    Returns:
        The error to raise, with file, line and the text around the error.
    """
    kinds = {field.name: kind_of_type(field.type) for field in schema} if schema else {}
    for number, line in numbered_lines(block, place):
        for key, value in parse_row(line, number, place).items():
            try:
                check_kind(key, value, kinds.get(key, "null"), number, place)
            except UserError as error:
                return error
            if value is not None:
                kinds[key] = _value_kind(value)
    last = place.first_line + block.count(b"\n")
    return UserError(f"{place.name}, {place.unit}s {place.first_line} to {last}: {cut(reason, 300)}")


def check_kind(key: str, value: object, before: str, number: int, place: BlockPosition) -> None:
    """Raises if a value is of another kind than the values before it. Null matches every kind."""
    kind = _value_kind(value)
    if kind != "null" and before != "null" and kind != before:
        raise UserError(
            f"{place.name}, {place.unit} {number}: column {key!r} is {kind} here, but {before} in earlier rows: "
            f"{cut(json.dumps(value, ensure_ascii=False), 2 * CONTEXT_CHARACTERS)}. Use one type per column"
        )


def check_one_row_per_line(block: bytes, place: BlockPosition) -> None:
    """Raises if a line does not hold exactly one object. Blank lines are ignored."""
    for number, line in numbered_lines(block, place):
        parse_row(line, number, place)


def check_column_names(block: bytes, schema: pa.Schema, found: pa.Schema, place: BlockPosition) -> None:
    """Raises for the first row with a column that earlier rows do not have."""
    if set(found.names) <= set(schema.names):
        return
    for number, line in numbered_lines(block, place):
        for key in parse_row(line, number, place):
            if key not in schema.names:
                raise UserError(
                    f"{place.name}, {place.unit} {number} has a column {key!r} that earlier rows do not have"
                    f"{nearest(key, schema.names)} (columns: {', '.join(schema.names)})"
                )


def check_present(table: pa.Table, block: bytes, place: BlockPosition) -> None:
    """Raises for the first row without one of the columns. An explicit null is accepted.

    Only rows in which the parser found null are parsed again.
    """
    nullable = [name for name in table.column_names if table.column(name).null_count]
    if not nullable:
        return
    numbered = numbered_lines(block, place)
    # Quotes inside strings are escaped, so only a key matches. It can be a key of a nested object.
    nested = any(pa.types.is_nested(field.type) for field in table.schema)
    for name in nullable:
        key = re.compile(re.escape(json.dumps(name, ensure_ascii=False).encode()) + rb"\s*:")
        for i in _null_rows(table.column(name)):
            number, line = numbered[i]
            if (nested or not key.search(line)) and name not in parse_row(line, number, place):
                known = ", ".join(table.column_names)
                raise UserError(
                    f"{place.name}, {place.unit} {number} has no column {name!r}, but other rows do "
                    f"(columns: {known}). Give every row the same columns; use null for missing values"
                )


def numbered_lines(block: bytes, place: BlockPosition) -> list[tuple[int, bytes]]:
    """Returns the non-blank lines of a block with their numbers."""
    return [(number, line) for number, line in enumerate(block.split(b"\n"), place.first_line) if line.strip()]


def parse_row(line: bytes, number: int, place: BlockPosition) -> dict[str, object]:
    """Parses the row in a line, with checks that the fast parser lacks; raises if the line holds no row."""
    where = f"{place.name}, {place.unit} {number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        before = line[max(0, error.start - CONTEXT_CHARACTERS) : error.start].decode("utf-8", "replace")
        raise UserError(f"{where}: byte {line[error.start]:#04x} is not UTF-8, after {before!r}") from None
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _unique_keys(pairs, where))
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - CONTEXT_CHARACTERS) : error.pos + CONTEXT_CHARACTERS]
        reason = error.msg.removesuffix(" at")
        raise UserError(f"{where} is not JSON: {reason} at character {error.pos + 1}: {around!r}") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{where} contains an unpaired surrogate (\\ud800 to \\udfff), which is not valid text"
        ) from None
    except ValueError:
        raise UserError(f"{where} contains a number with more than {sys.get_int_max_str_digits():,} digits") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    if not isinstance(found, dict):
        raise UserError(
            f"{where} is {_value_kind(found)}, not an object with columns: {cut(text, 2 * CONTEXT_CHARACTERS)!r}"
        )
    return found


def _null_rows(column: pa.ChunkedArray) -> list[int]:
    is_null: np.ndarray = column.is_null().combine_chunks().to_numpy(zero_copy_only=False)
    return [int(row) for row in np.flatnonzero(is_null)]


def _unique_keys(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise UserError(f"{where}: the key {twice!r} occurs twice")
    return found


def _value_kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
