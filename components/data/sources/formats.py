"""What a file holds, told from its content, and its rows as record batches."""

import csv
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llm_finetune.components.data.sources import json_array, jsonl
from llm_finetune.components.data.sources.sources import Source
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.pages import cut

HEAD = 1 << 16
ROWS = 16_384


class Rest:
    """A stream whose first bytes were looked at already."""

    def __init__(self, head: bytes, stream: pa.NativeFile) -> None:
        """Puts the bytes back before the rest of the stream."""
        self.head, self.stream = head, stream
        self.closed = False

    def read(self, count: int) -> bytes:
        """Returns `count` bytes, fewer only at the end: blocks must not depend on how the network delivers."""
        if not self.head:
            return filled(self.stream, count)
        head, self.head = self.head[:count], self.head[count:]
        return head + filled(self.stream, count - len(head))

    def close(self) -> None:
        """Does nothing: who opened the stream closes it."""


class Quoted(Rest):
    """The same, with a count of the quotes in it: in a whole CSV file it is even."""

    quotes = 0

    def read(self, count: int) -> bytes:
        """Returns `count` bytes, fewer only at the end."""
        data = super().read(count)
        self.quotes += int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord('"')))
        return data


def rows(source: Source, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """Reads a file of any known format.

    Args:
        source: The file.
        schema: Columns and types of JSON rows, where an earlier attempt found that wider ones are needed.

    Yields:
        Record batches, each of the schema before or of a wider one.

    Raises:
        UserError: If the file is empty, of another format or damaged.
    """
    with source.stream() as stream:
        head = filled(stream, HEAD)
        kind = recognise(head, source)
        if kind != "parquet":
            head = head.removeprefix(b"\xef\xbb\xbf")
            rest = Rest(head, stream)
            if kind == "csv":
                yield from _csv_rows(Quoted(head, stream), head, source)
            elif kind == "json array":
                yield from jsonl.parse(json_array.array_blocks(rest, source.name), source.name, schema, unit="element")
            else:
                yield from jsonl.parse(jsonl.line_blocks(rest, source.name), source.name, schema)
            return
    yield from _parquet_rows(source)


def filled(stream: pa.NativeFile, count: int) -> bytes:
    """Returns `count` bytes of a stream, fewer only at its end."""
    data = stream.read(count)
    while data and len(data) < count and (more := stream.read(count - len(data))):
        data += more
    return data


def recognise(head: bytes, source: Source) -> str:
    """Tells a file's format.

    Args:
        head: Its first bytes, unpacked.
        source: Where it comes from.

    Returns:
        `parquet`, `csv`, `json array` or `json lines`.

    Raises:
        UserError: If the file is empty or a web page.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and len(head) < HEAD:
        raise UserError(f"{source.name} is empty")
    if start[:1] == b"<":
        shown = start[:60].decode("utf-8", "replace")
        raise UserError(
            f"{source.name} is a web page, not data: {shown!r}. Use the address of the file itself "
            "(on the Hub /resolve/ instead of /blob/, on GitHub the raw file)"
        )
    if start[:1] in (b"{", b""):
        return "json lines"
    if start[:1] == b"[" and source.suffix not in (".csv", ".tsv"):
        return "json array"
    is_json = source.suffix in (".json", ".jsonl", ".ndjson")
    first_line = start.split(b"\n", 1)[0]
    return "json lines" if is_json or (source.suffix not in (".csv", ".tsv") and b"," not in first_line) else "csv"


def _csv_rows(rest: Quoted, head: bytes, source: Source) -> Iterator[pa.RecordBatch]:
    delimiter = "\t" if source.suffix == ".tsv" else ","
    first = head.decode("utf-8", "replace")
    names = next(csv.reader(first.splitlines(), delimiter=delimiter))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{source.name}: the column {twice[0]!r} is there twice")
    try:
        reader = pa.csv.open_csv(
            pa.PythonFile(rest, mode="r"),
            read_options=pa.csv.ReadOptions(block_size=jsonl.BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # CSV knows no types: a column of numbers may hold text further on.
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
        last: dict[str, str | None] = {}
        for batch in reader:
            yield batch
            if batch.num_rows:
                last = batch.slice(batch.num_rows - 1).to_pylist()[0]
        if rest.quotes % 2 and any("\n" in value for value in last.values() if value):
            raise UserError(f"{source.name}: a quote in the last row is never closed: {cut(str(last), 100)}")
    except pa.ArrowInvalid as error:
        raise UserError(f"{source.name}: {error}") from None


def _parquet_rows(source: Source) -> Iterator[pa.RecordBatch]:
    with source.seekable() as file:
        try:
            with pq.ParquetFile(file) as reader:
                for group in range(reader.num_row_groups):  # over the whole file the reader keeps what it has read
                    for batch in reader.iter_batches(batch_size=ROWS, row_groups=[group]):
                        batch.validate(full=True)
                        yield batch
        except pa.ArrowInvalid as error:
            raise UserError(f"{source.name} is damaged: {error}") from None
