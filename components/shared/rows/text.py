"""The text of a row: which columns hold it, and how other values become text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.rows.columns import as_text as as_text
from llm_finetune.components.shared.rows.columns import empty, trimmed
from llm_finetune.components.shared.rows.columns import is_text as is_text
from llm_finetune.components.shared.rows.conversations import (
    TOOLS,
    as_messages,
    begins,
    check_conversations,
    ends,
    flat_messages,
    is_role,
    spoken,
)
from llm_finetune.components.shared.settings import FieldSettings


@dataclass(frozen=True)
class Texts:
    """A batch's text, trimmed, one value per row and never null.

    A conversation is put into the same three fields: its system message, everything said in between, its last answer.

    Attributes:
        instruction: What is asked.
        input: What it is asked about.
        output: The answer.
    """

    instruction: pa.StringArray
    input: pa.StringArray
    output: pa.StringArray

    def lengths(self) -> pa.Array:
        """Returns the number of characters of the three fields together."""
        fields = (self.instruction, self.input, self.output)
        first, second, third = (pc.utf8_length(field) for field in fields)
        return pc.add(pc.add(first, second), third)

    def whole(self) -> pa.StringArray:
        """Returns all three fields; rows with the same one are duplicates."""
        return _joined(self.instruction, self.input, self.output)

    def prompt(self) -> pa.StringArray:
        """Returns what the model is given, without the answer."""
        return _joined(self.instruction, self.input)

    def own(self) -> pa.StringArray:
        """Returns the text that a row does not share with its whole task.

        Where there is an input, the instruction is usually the same in many rows: left in, it would make short rows
        of one task near-duplicates of each other.
        """
        asked = pc.if_else(pc.equal(self.input, ""), self.instruction, self.input)
        return _joined(asked, self.output)


def check_columns(schema: pa.Schema, fields: FieldSettings) -> None:
    """Checks that the columns which hold the text exist.

    Args:
        schema: The dataset's schema.
        fields: Which columns are meant.

    Raises:
        UserError: Naming the setting, the columns that exist and the nearest one.
    """
    names = ["chat_key"] if fields.chat_key else ["instruction_key", "input_key", "output_key"]
    for name in names:
        key = getattr(fields, name)
        if key and key not in schema.names:
            hint = nearest(key, schema.names)
            if not hint and not fields.chat_key and "messages" in schema.names:
                hint = "; set chat_key to 'messages' for data that already is a list of messages"
            elif not hint and name == "input_key":
                hint = "; set input_key to '' for data without an input"
            raise UserError(f"{name} = {key!r}: no row has it{hint} (columns: {', '.join(schema.names)})")
    if fields.chat_key:
        check_conversations(schema.field(fields.chat_key), "chat_key")


def texts(batch: pa.RecordBatch, fields: FieldSettings) -> Texts:
    """Reads a batch's text.

    Args:
        batch: Rows with the columns of `check_columns`.
        fields: Which columns are meant.

    Returns:
        The trimmed fields; null becomes empty, numbers and lists become text.
    """
    if fields.chat_key:
        return _conversation_texts(as_messages(batch.column(fields.chat_key), TOOLS in batch.schema.names))
    keys = (fields.instruction_key, fields.input_key, fields.output_key)
    return Texts(*(trimmed(batch.column(key)) if key else empty(batch.num_rows) for key in keys))


def _conversation_texts(column: pa.Array) -> Texts:
    row, messages = flat_messages(column)
    said = spoken(messages)
    is_instruction = begins(row) & is_role(messages, "system")
    is_answer = ends(row) & is_role(messages, "assistant")
    parts = (is_instruction, ~is_instruction & ~is_answer, is_answer)
    return Texts(*(_gathered(said, row, part, len(column)) for part in parts))


def _gathered(contents: pa.StringArray, row: np.ndarray, chosen: np.ndarray, rows: int) -> pa.StringArray:
    counts = np.bincount(row[chosen], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents.filter(pa.array(chosen))), "\n")


def _joined(*columns: pa.StringArray) -> pa.StringArray:
    return pc.binary_join_element_wise(*columns, "\x1f")
