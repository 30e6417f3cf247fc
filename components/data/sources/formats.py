"""Detects a file's format from its content, and reads its rows as record batches."""

import csv
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llm_finetune.components.data.sources import json_array, jsonl
from llm_finetune.components.data.sources.source import Source
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.pages import cut

HEAD_BYTES = 1 << 16
ROWS_PER_BATCH = 16_384


class PrefixedStream:
    """A stream whose first bytes have already been read."""

    def __init__(self, head: bytes, stream: pa.NativeFile) -> None:
        """Prepends the bytes to the rest of the stream."""
        self.head, self.stream = head, stream
        self.closed = False

    def read(self, count: int) -> bytes:
        """Returns `count` bytes, fewer only at the end, so that blocks do not depend on the network."""
        if not self.head:
            return read_fully(self.stream, count)
        head, self.head = self.head[:count], self.head[count:]
        return head + read_fully(self.stream, count - len(head))

    def close(self) -> None:
        """Does nothing; the stream is closed by its owner."""


class QuoteCountingStream(PrefixedStream):
    """Also counts quotes: a complete CSV file has an even number."""

    quotes = 0

    def read(self, count: int) -> bytes:
        """Returns `count` bytes, fewer only at the end."""
        data = super().read(count)
        self.quotes += int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord('"')))
        return data


def read_rows(source: Source, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """Reads a file of any supported format.

    Args:
        source: The file.
        schema: Columns and types of JSON rows that an earlier attempt found.

    Yields:
        Record batches. Each has the schema of the batch before, or a wider one.

    Raises:
        UserError: If the file is empty, damaged or of an unsupported format.
    """
    with source.stream() as stream:
        head = read_fully(stream, HEAD_BYTES)
        kind = detect_format(head, source)
        if kind != "parquet":
            head = head.removeprefix(b"\xef\xbb\xbf")
            rest = PrefixedStream(head, stream)
            if kind == "csv":
                yield from _read_csv(QuoteCountingStream(head, stream), head, source)
            elif kind == "json array":
                yield from jsonl.parse(json_array.array_blocks(rest, source.name), source.name, schema, unit="element")
            else:
                yield from jsonl.parse(jsonl.line_blocks(rest, source.name), source.name, schema)
            return
    yield from _read_parquet(source)


def read_fully(stream: pa.NativeFile, count: int) -> bytes:
    """Reads `count` bytes of a stream, fewer only at its end."""
    data: bytes = stream.read(count)
    while data and len(data) < count and (more := stream.read(count - len(data))):
        data += more
    return data


def detect_format(head: bytes, source: Source) -> str:
    """Detects a file's format.

    Args:
        head: First bytes, decompressed.
        source: The file.

    Returns:
        `parquet`, `csv`, `json array` or `json lines`.

    Raises:
        UserError: If the file is empty or an HTML page.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and len(head) < HEAD_BYTES:
        raise UserError(f"{source.name} is empty")
    if start[:1] == b"<":
        shown = start[:60].decode("utf-8", "replace")
        raise UserError(
            f"{source.name} is an HTML page, not data: {shown!r}. Use the URL of the file itself "
            "(on the Hub /resolve/ instead of /blob/, on GitHub the raw file)"
        )
    if start[:1] in (b"{", b""):
        return "json lines"
    if start[:1] == b"[" and source.suffix not in (".csv", ".tsv"):
        return "json array"
    is_json = source.suffix in (".json", ".jsonl", ".ndjson")
    first_line = start.split(b"\n", 1)[0]
    return "json lines" if is_json or (source.suffix not in (".csv", ".tsv") and b"," not in first_line) else "csv"


def _read_csv(rest: QuoteCountingStream, head: bytes, source: Source) -> Iterator[pa.RecordBatch]:
    delimiter = "\t" if source.suffix == ".tsv" else ","
    first = head.decode("utf-8", "replace")
    names = next(csv.reader(first.splitlines(), delimiter=delimiter))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{source.name}: the column {twice[0]!r} occurs twice")
    try:
        reader = pa.csv.open_csv(
            pa.PythonFile(rest, mode="r"),
            read_options=pa.csv.ReadOptions(block_size=jsonl.BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # CSV has no types: a column of numbers can contain text in later rows.
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
        last: dict[str, str | None] = {}
        for batch in reader:
            yield batch
            if batch.num_rows:
                last = batch.slice(batch.num_rows - 1).to_pylist()[0]
        if rest.quotes % 2 and any("\n" in value for value in last.values() if value):
            raise UserError(f"{source.name}: unclosed quote in the last row: {cut(str(last), 100)}")
    except pa.ArrowInvalid as error:
        raise UserError(f"{source.name}: {error}") from None


def _read_parquet(source: Source) -> Iterator[pa.RecordBatch]:
    with source.seekable() as file:
        try:
            with pq.ParquetFile(file) as reader:
                for group in range(reader.num_row_groups):  # over the whole file, the reader keeps all decoded data
                    for batch in reader.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group]):
                        batch.validate(full=True)
                        yield batch
        except pa.ArrowInvalid as error:
            raise UserError(f"{source.name} is damaged: {error}") from None
