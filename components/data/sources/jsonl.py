"""Reads JSON Lines as record batches: blocks of complete lines, parsed by pyarrow."""

import json
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.json

from llm_finetune.components.data.sources import json_errors, json_text
from llm_finetune.components.data.sources.column_types import TypesWidened, as_json_text, json_kind, plain_types, widen
from llm_finetune.components.shared.errors import UserError

FIRST_BLOCK_BYTES = 1 << 20
BLOCK_BYTES = 8 << 20
INFERENCE_BYTES = (
    64 << 10
)  # part of a block whose types are inferred at once; objects with new keys in every row are widened in between
MAX_LINE_BYTES = 64 << 20
MAX_DEPTH = 64

_STEPS = np.zeros(256, np.int32)  # change of the nesting depth per byte
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Stream(Protocol):
    """A readable stream of bytes."""

    def read(self, count: int) -> bytes:
        """Returns up to `count` bytes; empty only at the end."""
        ...


def line_blocks(stream: Stream, name: str) -> Iterator[tuple[bytes, int]]:
    """Splits a stream into blocks of complete lines.

    Args:
        stream: Bytes of a text file.
        name: File name for error messages.

    Yields:
        A block and the number of line ends in it. The first block is small, so that a few rows can be read quickly.

    Raises:
        UserError: If a line is longer than 64 MiB.
    """
    size, rest, lines = FIRST_BLOCK_BYTES, b"", 0
    while chunk := stream.read(size):
        end = chunk.rfind(b"\n") + 1
        if end:
            block = rest + chunk[:end] if rest else chunk[:end]
            count = int(
                np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            )  # three times faster than bytes.count
            lines += count
            yield block, count
            rest = chunk[end:]
        else:
            rest += chunk
        if len(rest) > MAX_LINE_BYTES:
            raise UserError(
                f"{name}: line {lines + 1} is longer than {MAX_LINE_BYTES >> 20} MiB; JSON Lines has one row per line"
            )
        size = min(2 * size, BLOCK_BYTES)
    if rest.strip():
        yield rest, 0


def parse(
    blocks: Iterable[tuple[bytes, int]], name: str, schema: pa.Schema | None = None, unit: str = "line"
) -> Iterator[pa.RecordBatch]:
    """Parses blocks of JSON rows.

    The first block sets the columns and their types. If a later block needs a wider type (text after null, a fraction
    after integers), its batch and all batches after it have that type.

    Args:
        blocks: One JSON object per line, and the number of line ends.
        name: File name for error messages.
        schema: Columns and types; inferred from the first block by default.
        unit: Name of a line in error messages.

    Yields:
        Record batches. Each has the schema of the batch before, or a wider one.

    Raises:
        UserError: If a row is not JSON or does not match the other rows.
    """
    first_line = 1
    for block, lines in blocks:
        place = json_errors.BlockPosition(name, first_line, unit)
        first_line += lines
        if block.isspace():
            continue
        _check_depth(block, place)
        if schema is None:
            schema = _infer_schema(block, place)
        while True:
            try:
                table = _parse_block(block, schema, place, lines)
                break
            except TypesWidened as wider:
                schema = wider.schema
        yield from table.to_batches()


def _infer_schema(block: bytes, place: json_errors.BlockPosition) -> pa.Schema:
    """Infers the schema from all rows of a block."""
    schema = pa.schema([])
    for piece, lines in _split_block(block):
        try:
            table = _read_json(piece, None, len(piece))
            found = plain_types(table.schema, place.name, MAX_DEPTH)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise json_errors.bad_line(block, place, str(error)) from None
        piece_place = json_errors.BlockPosition(place.name, place.first_line + lines, place.unit)
        wider = widen(schema, _as_json_columns(found, json_text.float_columns_with_integers(table, piece, piece_place)))
        if wider is None:
            raise json_errors.bad_line(block, place, "a column's values are not of one type")
        schema = wider
    if not schema.names:
        raise UserError(f"{place.name}: the rows have no columns")
    return schema


def _split_block(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Splits a block into pieces of about `INFERENCE_BYTES`, each with the number of lines before it."""
    start = lines = 0
    while start < len(block):
        end = block.rfind(b"\n", start, start + INFERENCE_BYTES) + 1 or block.find(b"\n", start) + 1 or len(block)
        piece, start = block[start:end], end
        if not piece.isspace():
            yield piece, lines
        lines += piece.count(b"\n")


def _as_json_columns(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    return pa.schema([as_json_text(field) if field.name in names else field for field in schema])


def _parse_block(block: bytes, schema: pa.Schema, place: json_errors.BlockPosition, lines: int) -> pa.Table:
    block = json_text.encode_json_columns(block, schema, place)
    try:
        table = _read_json(block, schema, 1 << 20)
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        table = _diagnose(block, schema, place, str(error))
    if table.num_rows != lines + (not block.endswith(b"\n")):
        json_errors.check_one_row_per_line(block, place)
    json_errors.check_present(table, block, place)
    if changed := json_text.float_columns_with_integers(table, block, place):
        raise TypesWidened(_as_json_columns(schema, changed))
    return pa.Table.from_arrays(
        table.select(schema.names).columns, schema=schema
    )  # the fields' metadata marks JSON text


def _diagnose(block: bytes, schema: pa.Schema, place: json_errors.BlockPosition, reason: str) -> pa.Table:
    """Handles a block that the parser rejected: a long line, a wider type or a bad row."""
    if "straddling" in reason:
        return _parse_unsplit(block, schema, place)
    known = {field.name: field for field in schema if json_kind(field)}
    found = pa.schema([known.get(field.name, field) for field in _infer_schema(block, place)])
    json_errors.check_column_names(block, schema, found, place)
    wider = widen(schema, found)
    if wider is None or wider == schema:
        raise json_errors.bad_line(block, place, reason, schema)
    raise TypesWidened(wider)


def _parse_unsplit(block: bytes, schema: pa.Schema, place: json_errors.BlockPosition) -> pa.Table:
    try:
        table = _read_json(block, schema, len(block))
        table.validate(full=True)
        return table
    except pa.ArrowInvalid as error:
        return _diagnose(block, schema, place, str(error))


def _read_json(block: bytes, schema: pa.Schema | None, block_size: int) -> pa.Table:
    table = pa.json.read_json(
        pa.BufferReader(block),
        read_options=pa.json.ReadOptions(block_size=block_size + 1, use_threads=True),
        parse_options=pa.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error" if schema else "infer"
        ),
    )
    return _fix_null_lists(table)


def _check_depth(block: bytes, place: json_errors.BlockPosition) -> None:
    """Raises for nesting so deep that the C++ parser would overflow its stack. Brackets in strings count too."""
    brackets = np.frombuffer(block.translate(None, _NO_BRACKETS), np.uint8)
    if len(brackets) and np.cumsum(_STEPS[brackets]).max() > 1000:
        for number, line in enumerate(block.split(b"\n"), place.first_line):
            if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
                try:
                    json.loads(line)
                except RecursionError:
                    raise UserError(f"{place.name}, {place.unit} {number}: nested too deeply") from None
                except ValueError:
                    continue  # the parser reports it with its position


def _fix_null_lists(table: pa.Table) -> pa.Table:
    """Corrects lists that hold only null: pyarrow 26's JSON reader gives such a column too few values.

    Args:
        table: Table that `pyarrow.json.read_json` returned, not yet validated.
    """
    for i, field in enumerate(table.schema):
        if _has_null_lists(field.type):
            chunks = [_fix_null_array(chunk) for chunk in table.column(i).chunks]
            table = table.set_column(i, field, pa.chunked_array(chunks, field.type))
    return table


def _has_null_lists(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return pa.types.is_null(kind.value_type) or _has_null_lists(kind.value_type)
    return pa.types.is_struct(kind) and any(_has_null_lists(part.type) for part in kind)


def _fix_null_array(array: pa.Array) -> pa.Array:
    kind = array.type
    if not _has_null_lists(kind):
        return array
    if pa.types.is_struct(kind):
        parts = [_fix_null_array(array.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    offsets = array.offsets
    values = pa.nulls(offsets[-1].as_py()) if pa.types.is_null(kind.value_type) else _fix_null_array(array.values)
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
