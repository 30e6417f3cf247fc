"""Reads the text of rows from the columns that hold it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.rows.columns import empty_texts, trim
from llm_finetune.components.shared.rows.conversations import (
    TOOLS,
    as_messages,
    check_conversations,
    flatten_messages,
    is_first_message,
    is_last_message,
    is_role,
    message_texts,
)
from llm_finetune.components.shared.settings import FieldSettings

MAX_COUNTED_LENGTH = 1 << 16


@dataclass(frozen=True)
class Texts:
    """Trimmed text of a batch, one value per row, without null.

    A conversation has the same three fields: its system message, all messages in between, and its last answer.

    Attributes:
        instruction: The instruction.
        input: The input.
        output: The answer.
    """

    instruction: pa.StringArray
    input: pa.StringArray
    output: pa.StringArray

    def lengths(self) -> pa.Array:
        """Returns the total number of characters of the three fields."""
        fields = (self.instruction, self.input, self.output)
        first, second, third = (pc.utf8_length(field) for field in fields)
        return pc.add(pc.add(first, second), third)

    def full_text(self) -> pa.StringArray:
        """Returns all three fields; rows with equal full text are duplicates."""
        return _join(self.instruction, self.input, self.output)

    def prompt(self) -> pa.StringArray:
        """Returns instruction and input."""
        return _join(self.instruction, self.input)

    def distinctive_text(self) -> pa.StringArray:
        """Returns input and output, or instruction and output for rows without input.

        If there is an input, many rows usually have the same instruction, which would make short rows of one task
        near-duplicates of each other.
        """
        question = pc.if_else(pc.equal(self.input, ""), self.instruction, self.input)
        return _join(question, self.output)


def count_lengths(lengths: np.ndarray) -> np.ndarray:
    """Returns the number of rows per length, for `charts.histogram`; the last entry includes all longer rows."""
    return np.bincount(np.minimum(lengths, MAX_COUNTED_LENGTH), minlength=MAX_COUNTED_LENGTH + 1)


def check_columns(schema: pa.Schema, fields: FieldSettings) -> None:
    """Checks that the text columns exist.

    Args:
        schema: The dataset's schema.
        fields: Names of the text columns.

    Raises:
            UserError: If a column is missing.
    """
    names = ["chat_key"] if fields.chat_key else ["instruction_key", "input_key", "output_key"]
    for name in names:
        key = getattr(fields, name)
        if key and key not in schema.names:
            hint = nearest(key, schema.names)
            if not hint and not fields.chat_key and "messages" in schema.names:
                hint = "; set chat_key to 'messages' for conversations"
            elif not hint and name == "input_key":
                hint = "; set input_key to '' for data without an input"
            raise UserError(f"{name} = {key!r}: no such column{hint} (columns: {', '.join(schema.names)})")
    if fields.chat_key:
        check_conversations(schema.field(fields.chat_key), "chat_key")


def row_texts(batch: pa.RecordBatch, fields: FieldSettings) -> Texts:
    """Reads the text of a batch.

    Args:
        batch: Rows that passed `check_columns`.
        fields: Names of the text columns.

    Returns:
        The trimmed fields; null becomes empty, numbers and lists become text.
    """
    if fields.chat_key:
        return _conversation_texts(as_messages(batch.column(fields.chat_key), TOOLS in batch.schema.names))
    keys = (fields.instruction_key, fields.input_key, fields.output_key)
    return Texts(*(trim(batch.column(key)) if key else empty_texts(batch.num_rows) for key in keys))


def _conversation_texts(column: pa.Array) -> Texts:
    row, messages = flatten_messages(column)
    contents = message_texts(messages)
    is_instruction = is_first_message(row) & is_role(messages, "system")
    is_answer = is_last_message(row) & is_role(messages, "assistant")
    parts = (is_instruction, ~is_instruction & ~is_answer, is_answer)
    return Texts(*(_join_messages(contents, row, part, len(column)) for part in parts))


def _join_messages(contents: pa.StringArray, row: np.ndarray, selected: np.ndarray, rows: int) -> pa.StringArray:
    counts = np.bincount(row[selected], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents.filter(pa.array(selected))), "\n")


def _join(*columns: pa.StringArray) -> pa.StringArray:
    return pc.binary_join_element_wise(*columns, "\x1f")
