"""JSON Lines as record batches: whole lines in blocks, parsed by pyarrow, every row with the same columns."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from llm_finetune.components.data.sources import explain, json_text
from llm_finetune.components.data.sources.null_lists import mended
from llm_finetune.components.data.sources.types import TypesWidened, as_held, held_kind, plain_types, widened
from llm_finetune.components.shared.errors import UserError

FIRST_BLOCK = 1 << 20
BLOCK = 8 << 20
PIECE = 64 << 10  # whose types are guessed at once: an object of ever new keys makes as many columns as rows
LONGEST_LINE = 64 << 20
DEEPEST = 64

_STEPS = np.zeros(256, np.int32)  # what a bracket does to the depth
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def line_blocks(stream: Any, name: str) -> Iterator[tuple[bytes, int]]:
    """Cuts a stream into blocks of whole lines.

    Args:
        stream: Bytes of a text file.
        name: The file, for messages.

    Yields:
        Blocks that each end after a line, the first one small so that a few rows need little reading, and the number of
        line ends in each.

    Raises:
        UserError: If a line is longer than 64 MiB.
    """
    size, rest, lines = FIRST_BLOCK, b"", 0
    while chunk := stream.read(size):
        end = chunk.rfind(b"\n") + 1
        if end:
            block = rest + chunk[:end] if rest else chunk[:end]
            count = int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))  # thrice as fast as bytes.count
            lines += count
            yield block, count
            rest = chunk[end:]
        else:
            rest += chunk
        if len(rest) > LONGEST_LINE:
            raise UserError(
                f"{name}: line {lines + 1} is longer than {LONGEST_LINE >> 20} MiB; JSON Lines has one row per line"
            )
        size = min(2 * size, BLOCK)
    if rest.strip():
        yield rest, 0


def parse(
    blocks: Iterable[tuple[bytes, int]], name: str, schema: pa.Schema | None = None, unit: str = "line"
) -> Iterator[pa.RecordBatch]:
    """Parses blocks of JSON rows.

    The first block decides the columns and their types. From a later one on that needs a wider type (text where only
    null was, a fraction where whole numbers were) all batches have it.

    Args:
        blocks: One JSON object per line, and the number of line ends.
        name: The file, for messages.
        schema: Columns and types; those of the first block by default.
        unit: What a line is called in messages.

    Yields:
        Record batches, each of the schema before or of a wider one.

    Raises:
        UserError: If a row is not JSON, or not like the others.
    """
    first_line = 1
    for block, lines in blocks:
        place = explain.Place(name, first_line, unit)
        first_line += lines
        if block.isspace():
            continue
        _refuse_depth(block, place)
        if schema is None:
            schema = _inferred(block, place)
        while True:
            try:
                table = _table(block, schema, place, lines)
                break
            except TypesWidened as wider:
                schema = wider.schema
        yield from table.to_batches()


def _inferred(block: bytes, place: explain.Place) -> pa.Schema:
    """Returns the schema of a block, from a pass that sees all of it."""
    schema = pa.schema([])
    for piece, lines in _pieces(block):
        try:
            table = _read(piece, None, len(piece))
            found = plain_types(table.schema, place.name, DEEPEST)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise explain.bad_line(block, place, str(error)) from None
        there = explain.Place(place.name, place.first_line + lines, place.unit)
        wider = widened(schema, _held(found, json_text.changed(table, piece, there)))
        if wider is None:
            raise explain.bad_line(block, place, "a column's values are not of one type")
        schema = wider
    if not schema.names:
        raise UserError(f"{place.name}: the rows have no columns")
    return schema


def _pieces(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Cuts a block into smaller ones, each with the number of lines before it; a long line stands alone."""
    start = lines = 0
    while start < len(block):
        end = block.rfind(b"\n", start, start + PIECE) + 1 or block.find(b"\n", start) + 1 or len(block)
        piece, start = block[start:end], end
        if not piece.isspace():
            yield piece, lines
        lines += piece.count(b"\n")


def _held(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    return pa.schema([as_held(field) if field.name in names else field for field in schema])


def _table(block: bytes, schema: pa.Schema, place: explain.Place, lines: int) -> pa.Table:
    block = json_text.as_held(block, schema, place)
    try:
        table = _read(block, schema, 1 << 20)
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        table = _again(block, schema, place, str(error))
    if table.num_rows != lines + (not block.endswith(b"\n")):
        explain.check_one_row_per_line(block, place)
    explain.check_present(table, block, place)
    if changed := json_text.changed(table, block, place):
        raise TypesWidened(_held(schema, changed))
    return pa.Table.from_arrays(table.select(schema.names).columns, schema=schema)  # whose fields tell JSON from text


def _again(block: bytes, schema: pa.Schema, place: explain.Place, reason: str) -> pa.Table:
    """Finds out why a block was refused: a long line, a wider type, or a bad row."""
    if "straddling" in reason:
        return _table_in_one(block, schema, place)
    known = {field.name: field for field in schema if held_kind(field)}
    found = pa.schema([known.get(field.name, field) for field in _inferred(block, place)])
    explain.check_names(block, schema, found, place)
    wider = widened(schema, found)
    if wider is None or wider == schema:
        raise explain.bad_line(block, place, reason, schema)
    raise TypesWidened(wider)


def _table_in_one(block: bytes, schema: pa.Schema, place: explain.Place) -> pa.Table:
    try:
        table = _read(block, schema, len(block))
        table.validate(full=True)
        return table
    except pa.ArrowInvalid as error:
        return _again(block, schema, place, str(error))


def _read(block: bytes, schema: pa.Schema | None, block_size: int) -> pa.Table:
    table = pa.json.read_json(
        pa.BufferReader(block),
        read_options=pa.json.ReadOptions(block_size=block_size + 1, use_threads=True),
        parse_options=pa.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error" if schema else "infer"
        ),
    )
    return mended(table)


def _refuse_depth(block: bytes, place: explain.Place) -> None:
    """Refuses nesting so deep that the C++ parser would run out of stack; brackets inside text count too."""
    brackets = np.frombuffer(block.translate(None, _NO_BRACKETS), np.uint8)
    if len(brackets) and np.cumsum(_STEPS[brackets]).max() > 1000:
        for number, line in enumerate(block.split(b"\n"), place.first_line):
            if line.count(b"[") + line.count(b"{") > DEEPEST:
                try:
                    json.loads(line)
                except RecursionError:
                    raise UserError(f"{place.name}, {place.unit} {number}: nested too deeply") from None
                except ValueError:
                    continue  # told apart from the rest by the parser, with its place
