"""Which line of a JSON file is wrong, and how: asked only after the fast parser refused a block."""

import json
import re
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm_finetune.components.data.sources.types import kind_of_type
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.pages import cut

AROUND = 40  # characters shown on either side of a mistake


@dataclass(frozen=True)
class Place:
    """Where a block of lines comes from.

    Attributes:
        name: The file.
        first_line: Number of the block's first line, from 1.
        unit: What a line is called: `line`, or `element` of a JSON array.
    """

    name: str
    first_line: int
    unit: str


def bad_line(block: bytes, place: Place, reason: str, schema: pa.Schema | None = None) -> UserError:
    """Finds the first line that is no JSON object or has a value of another type than the rows before.

    Args:
        block: Whole lines.
        place: Where they come from.
        reason: What the parser said, in case that no line is found.
        schema: Types of the rows before the block, if there were any.

    Returns:
        The error to raise, with file, line and the text around the mistake.
    """
    kinds = {field.name: kind_of_type(field.type) for field in schema} if schema else {}
    for number, line in lines(block, place):
        for key, value in row(line, number, place).items():
            try:
                check_kind(key, value, kinds.get(key, "null"), number, place)
            except UserError as error:
                return error
            if value is not None:
                kinds[key] = _kind(value)
    last = place.first_line + block.count(b"\n")
    return UserError(f"{place.name}, {place.unit}s {place.first_line} to {last}: {cut(reason, 300)}")


def check_kind(key: str, value: Any, before: str, number: int, place: Place) -> None:
    """Raises where a row's value is of another kind than those before; null goes with all."""
    kind = _kind(value)
    if kind != "null" and before != "null" and kind != before:
        raise UserError(
            f"{place.name}, {place.unit} {number}: {key!r} is {kind} here and {before} before: "
            f"{cut(json.dumps(value, ensure_ascii=False), 2 * AROUND)}. Give a column one type"
        )


def check_one_row_per_line(block: bytes, place: Place) -> None:
    """Raises where a line holds no object or more than one; blank lines are passed over."""
    for number, line in lines(block, place):
        row(line, number, place)


def check_names(block: bytes, schema: pa.Schema, found: pa.Schema, place: Place) -> None:
    """Raises for the first row with a column that the rows before do not have."""
    if set(found.names) <= set(schema.names):
        return
    for number, line in lines(block, place):
        for key in row(line, number, place):
            if key not in schema.names:
                raise UserError(
                    f"{place.name}, {place.unit} {number} has a column {key!r} that the rows before do not have"
                    f"{nearest(key, schema.names)} (columns: {', '.join(schema.names)})"
                )


def check_present(table: pa.Table, block: bytes, place: Place) -> None:
    """Raises for the first row that lacks a column; a null that is written out is fine.

    Only rows in which the parser found null are looked at again.
    """
    holes = [name for name in table.column_names if table.column(name).null_count]
    if not holes:
        return
    numbered = lines(block, place)
    # Inside text a quote is escaped, so that only a true key matches; one of a nested object may be meant, though.
    nested = any(pa.types.is_nested(field.type) for field in table.schema)
    for name in holes:
        key = re.compile(re.escape(json.dumps(name, ensure_ascii=False).encode()) + rb"\s*:")
        for i in _null_rows(table.column(name)):
            number, line = numbered[i]
            if (nested or not key.search(line)) and name not in row(line, number, place):
                known = ", ".join(table.column_names)
                raise UserError(
                    f"{place.name}, {place.unit} {number} has no column {name!r}, other rows have "
                    f"(columns: {known}). Give every row the same columns; null may stand for nothing"
                )


def lines(block: bytes, place: Place) -> list[tuple[int, bytes]]:
    """Returns the lines of a block that hold rows, with their numbers."""
    return [(number, line) for number, line in enumerate(block.split(b"\n"), place.first_line) if line.strip()]


def row(line: bytes, number: int, place: Place) -> dict[str, Any]:
    """Returns the row that a line holds, with checks that the fast parser leaves out; raises where it holds none."""
    where = f"{place.name}, {place.unit} {number}"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        before = line[max(0, error.start - AROUND) : error.start].decode("utf-8", "replace")
        raise UserError(f"{where}: byte {line[error.start]:#04x} is not UTF-8, after {before!r}") from None
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, where))
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - AROUND) : error.pos + AROUND]
        reason = error.msg.removesuffix(" at")
        raise UserError(f"{where} is not JSON: {reason} at character {error.pos + 1}: {around!r}") from None
    except UnicodeEncodeError:
        raise UserError(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    except ValueError:
        raise UserError(f"{where} holds a number of more than {sys.get_int_max_str_digits():,} digits") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} is {_kind(found)}, not an object with columns: {cut(text, 2 * AROUND)!r}")
    return found


def _null_rows(column: pa.ChunkedArray) -> list[int]:
    return column.is_null().combine_chunks().to_numpy(zero_copy_only=False).nonzero()[0].tolist()


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise UserError(f"{where}: {twice!r} is there twice")
    return found


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
