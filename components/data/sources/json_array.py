"""A JSON array as blocks of lines, read as far as the next element needs."""

import json
from collections.abc import Iterator
from typing import Protocol

from llm_finetune.components.data.sources import jsonl
from llm_finetune.components.shared.errors import UserError

_DECODER = json.JSONDecoder()


class Stream(Protocol):
    """Bytes of a text file."""

    def read(self, count: int) -> bytes:
        """Returns up to `count` bytes; empty only at the end."""
        ...


def array_blocks(stream: Stream, name: str) -> Iterator[tuple[bytes, int]]:
    """Cuts a JSON array into blocks with one element per line.

    Args:
        stream: Text that begins with `[`.
        name: The file, for messages.

    Yields:
        Blocks of whole elements, and the number of elements in each.

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
            yield _lines(block), len(block)
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
        yield _lines(block), len(block)


class _Characters:
    """The text of a JSON array, read as far as the next element needs."""

    def __init__(self, stream: Stream, name: str) -> None:
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
