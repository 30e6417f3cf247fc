"""JSON Lines as record batches: whole lines in blocks, parsed by pyarrow, every row with the same columns."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from llm_finetune.components.data.load_dataset import explain
from llm_finetune.components.data.load_dataset.columns import TypesWidened, plain_types, widened
from llm_finetune.components.shared.errors import UserError

FIRST_BLOCK = 1 << 20
BLOCK = 8 << 20
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

    The first block decides the columns and their types. A later one that needs a wider type (a number with a fraction
    where whole ones were, text where only null was) ends the parse, so that the caller can begin again with it.

    Args:
        blocks: One JSON object per line, and the number of line ends.
        name: The file, for messages.
        schema: Columns and types; those of the first block by default.
        unit: What a line is called in messages.

    Yields:
        Record batches of one schema.

    Raises:
        TypesWidened: With the schema to begin again with.
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
        yield from _table(block, schema, place, lines).to_batches()


def _inferred(block: bytes, place: explain.Place) -> pa.Schema:
    """Returns the schema of a block, from one pass that sees all of it."""
    try:
        found = _read(block, None, len(block)).schema
        names = found.names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise explain.bad_line(block, place, str(error)) from None
    if not names:
        raise UserError(f"{place.name}: the rows have no columns")
    return plain_types(found, place.name, DEEPEST)


def _table(block: bytes, schema: pa.Schema, place: explain.Place, lines: int) -> pa.Table:
    try:
        table = _read(block, schema, 1 << 20)
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        table = _again(block, schema, place, str(error))
    if table.num_rows != lines + (not block.endswith(b"\n")):
        explain.check_one_row_per_line(block, place)
    explain.check_present(table, block, place)
    return table


def _again(block: bytes, schema: pa.Schema, place: explain.Place, reason: str) -> pa.Table:
    """Finds out why a block was refused: a long line, a wider type, or a bad row."""
    if "straddling" in reason:
        return _table_in_one(block, schema, place)
    found = _inferred(block, place)
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
    return pa.json.read_json(
        pa.BufferReader(block),
        read_options=pa.json.ReadOptions(block_size=block_size + 1, use_threads=True),
        parse_options=pa.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error" if schema else "infer"
        ),
    )


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
