"""Streams a JSON array as blocks of lines, one element per line."""

import json
from collections.abc import Iterator

from llm_finetune.components.data.sources import jsonl
from llm_finetune.components.shared.errors import UserError

_DECODER = json.JSONDecoder()


def array_blocks(stream: jsonl.Stream, name: str) -> Iterator[tuple[bytes, int]]:
    """Splits a JSON array into blocks with one element per line.

    Args:
        stream: Text that starts with `[`.
        name: File name for error messages.

    Yields:
        A block of complete elements, and the number of elements in it.

    Raises:
        UserError: If the text is not a single JSON array.
    """
    reader = _ArrayReader(stream, name)
    reader.expect("[")
    number = 1
    block: list[str] = []
    size = 0
    while reader.peek() != "]" or number > 1:
        element = reader.read_element(number)
        block.append(element)
        size += len(element)
        if size >= jsonl.FIRST_BLOCK_BYTES:
            yield _lines(block), len(block)
            block, size = [], 0
        number += 1
        if reader.peek() == ",":
            reader.expect(",")
        elif reader.peek() == "]":
            break
        elif not reader.peek():
            raise UserError(f"{name}: the array ends after element {number - 1} without ']'")
        else:
            raise UserError(f"{name}: expected ',' or ']' after element {number - 1}, found {reader.preview()!r}")
    reader.expect("]")
    if reader.peek():
        raise UserError(f"{name}: text after the end of the array: {reader.preview()!r}")
    if block:
        yield _lines(block), len(block)


class _ArrayReader:
    """Reads a JSON array element by element, without loading more text than the next element needs."""

    def __init__(self, stream: jsonl.Stream, name: str) -> None:
        self.stream, self.name = stream, name
        self.text, self.at, self.tail = "", 0, b""
        self.ended = False

    def read_more(self, size: int) -> None:
        data = self.stream.read(size)
        self.ended = not data
        data = self.tail + data
        end = len(data)
        if not self.ended:  # a character can be split between two reads
            end = next((len(data) - i for i in range(1, min(4, len(data)) + 1) if data[-i] >= 0xC0), len(data))
        try:
            new = data[:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name}: byte {data[error.start]:#04x} is not UTF-8") from None
        self.tail = data[end:]
        self.text, self.at = self.text[self.at :] + new, 0

    def peek(self) -> str:
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.read_more(jsonl.FIRST_BLOCK_BYTES)

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise UserError(f"{self.name}: the array ends without {character!r}")
        self.at += 1

    def read_element(self, number: int) -> str:
        self.peek()
        size = jsonl.FIRST_BLOCK_BYTES
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    element, self.at = self.text[self.at : end], end
                    return element
                error = "the file ends within the element"
            except json.JSONDecodeError as mistake:
                error = f"{mistake.msg}: {self.text[max(self.at, mistake.pos - 40) : mistake.pos + 40]!r}"
                if not mistake.msg.startswith("Unterminated") and mistake.pos < len(self.text) - 16:
                    raise UserError(f"{self.name}, element {number} is not JSON: {error}") from None
            except RecursionError:
                raise UserError(f"{self.name}, element {number}: nested too deeply") from None
            if self.ended:
                raise UserError(f"{self.name}, element {number} is not JSON: {error}")
            if len(self.text) - self.at > jsonl.MAX_LINE_BYTES:
                raise UserError(f"{self.name}: element {number} is longer than {jsonl.MAX_LINE_BYTES >> 20} MiB")
            self.read_more(size)
            size *= 2

    def preview(self) -> str:
        return self.text[self.at : self.at + 40]


def _lines(elements: list[str]) -> bytes:
    # Outside strings a line break is white space; inside strings JSON does not allow unescaped ones.
    return "".join(element.replace("\n", " ").replace("\r", " ") + "\n" for element in elements).encode()
