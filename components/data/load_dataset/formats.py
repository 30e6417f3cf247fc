"""What a file holds, told from its content, and its rows as record batches."""

import csv
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from llm_finetune.components.data.load_dataset import jsonl
from llm_finetune.components.data.load_dataset.sources import Source
from llm_finetune.components.shared.errors import UserError

HEAD = 1 << 16
ROWS = 16_384
_DECODER = json.JSONDecoder()


class Rest:
    """A stream whose first bytes were looked at already."""

    def __init__(self, head: bytes, stream: pa.NativeFile) -> None:
        """Puts the bytes back before the rest of the stream."""
        self.head, self.stream = head, stream
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        """Returns the bytes that were looked at, then those of the stream; empty only at the end."""
        if self.head:
            head, self.head = self.head, b""
            return head
        return self.stream.read(count)

    def close(self) -> None:
        """Does nothing: who opened the stream closes it."""


def rows(source: Source, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """Reads a file of any known format.

    Args:
        source: The file.
        schema: Columns and types of JSON rows, where an earlier attempt found that wider ones are needed.

    Yields:
        Record batches of one schema.

    Raises:
        TypesWidened: With the schema to begin again with.
        UserError: If the file is empty, of another format or damaged.
    """
    with source.stream() as stream:
        head = _filled(stream, HEAD)
        kind = recognise(head, source)
        if kind != "parquet":
            rest = Rest(head.removeprefix(b"\xef\xbb\xbf"), stream)
            if kind == "csv":
                yield from _csv_rows(rest, head, source)
            elif kind == "json array":
                yield from jsonl.parse(array_blocks(rest, source.name), source.name, schema, unit="element")
            else:
                yield from jsonl.parse(jsonl.line_blocks(rest, source.name), source.name, schema)
            return
    yield from _parquet_rows(source)


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
    if not start:
        raise UserError(f"{source.name} is empty")
    if start[:1] == b"<":
        shown = start[:60].decode("utf-8", "replace")
        raise UserError(
            f"{source.name} is a web page, not data: {shown!r}. Use the address of the file itself "
            "(on the Hub /resolve/ instead of /blob/, on GitHub the raw file)"
        )
    if start[:1] == b"{":
        return "json lines"
    if start[:1] == b"[" and source.suffix not in (".csv", ".tsv"):
        return "json array"
    is_json = source.suffix in (".json", ".jsonl", ".ndjson")
    first_line = start.split(b"\n", 1)[0]
    return "json lines" if is_json or (source.suffix not in (".csv", ".tsv") and b"," not in first_line) else "csv"


def array_blocks(stream: Rest, name: str) -> Iterator[bytes]:
    """Cuts a JSON array into blocks with one element per line.

    Args:
        stream: Text that begins with `[`.
        name: The file, for messages.

    Yields:
        Blocks of whole elements.

    Raises:
        UserError: If the text is not one JSON array.
    """
    reader = _Characters(stream, name)
    reader.skip("[")
    number = 1
    block: list[str] = []
    size = 0
    while reader.next_character() != "]" or number > 1:
        element = reader.element(number)
        block.append(element)
        size += len(element)
        if size >= jsonl.FIRST_BLOCK:
            yield _lines(block)
            block, size = [], 0
        number += 1
        if reader.next_character() == ",":
            reader.skip(",")
        elif reader.next_character() == "]":
            break
        elif not reader.next_character():
            raise UserError(f"{name}: the array is cut off after element {number - 1}")
        else:
            raise UserError(f"{name}: after element {number - 1} comes {reader.shown()!r}, not ',' or ']'")
    reader.skip("]")
    if reader.next_character():
        raise UserError(f"{name}: after the array comes more text: {reader.shown()!r}")
    if block:
        yield _lines(block)


class _Characters:
    """The text of a JSON array, read as far as the next element needs."""

    def __init__(self, stream: Rest, name: str) -> None:
        self.stream, self.name = stream, name
        self.text, self.at, self.tail = "", 0, b""
        self.ended = False

    def more(self, size: int) -> None:
        data = self.stream.read(size)
        self.ended = not data
        data = self.tail + data
        end = len(data)
        if not self.ended:  # a character may lie across two reads
            end = next((len(data) - i for i in range(1, min(4, len(data)) + 1) if data[-i] >= 0xC0), len(data))
        try:
            new = data[:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name}: byte {data[error.start]:#04x} is not UTF-8") from None
        self.tail = data[end:]
        self.text, self.at = self.text[self.at :] + new, 0

    def next_character(self) -> str:
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more(jsonl.FIRST_BLOCK)

    def skip(self, character: str) -> None:
        if self.next_character() != character:
            raise UserError(f"{self.name}: the array is cut off: {character!r} is missing at its end")
        self.at += 1

    def element(self, number: int) -> str:
        self.next_character()
        size = jsonl.FIRST_BLOCK
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    element, self.at = self.text[self.at : end], end
                    return element
                error = "the array is cut off"
            except json.JSONDecodeError as mistake:
                error = f"{mistake.msg}: {self.text[max(self.at, mistake.pos - 40) : mistake.pos + 40]!r}"
                if not mistake.msg.startswith("Unterminated") and mistake.pos < len(self.text) - 16:
                    raise UserError(f"{self.name}, element {number} is not JSON: {error}") from None
            except RecursionError:
                raise UserError(f"{self.name}, element {number}: nested too deeply") from None
            if self.ended:
                raise UserError(f"{self.name}, element {number} is not JSON: {error}")
            if len(self.text) - self.at > jsonl.LONGEST_LINE:
                raise UserError(f"{self.name}: element {number} is longer than {jsonl.LONGEST_LINE >> 20} MiB")
            self.more(size)
            size *= 2

    def shown(self) -> str:
        return self.text[self.at : self.at + 40]


def _lines(elements: list[str]) -> bytes:
    # Outside of strings a line break is mere layout, and inside of them JSON has no bare one.
    return "".join(element.replace("\n", " ").replace("\r", " ") + "\n" for element in elements).encode()


def _csv_rows(rest: Rest, head: bytes, source: Source) -> Iterator[pa.RecordBatch]:
    delimiter = "\t" if source.suffix == ".tsv" else ","
    first = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    names = next(csv.reader(first.splitlines(), delimiter=delimiter))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{source.name}: the column {twice[0]!r} is there twice")
    try:
        yield from pa.csv.open_csv(
            pa.PythonFile(rest, mode="r"),
            read_options=pa.csv.ReadOptions(block_size=jsonl.BLOCK),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # CSV knows no types: a column of numbers may hold text further on.
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
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


def _filled(stream: pa.NativeFile, count: int) -> bytes:
    head = b""
    while len(head) < count and (more := stream.read(count - len(head))):
        head += more
    return head
