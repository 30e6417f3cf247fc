"""The text of a row: which columns hold it, and how other values become text."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.settings import FieldSettings

ROLES = ("system", "user", "assistant")


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
        _check_messages(schema.field(fields.chat_key))


def texts(batch: pa.RecordBatch, fields: FieldSettings) -> Texts:
    """Reads a batch's text.

    Args:
        batch: Rows with the columns of `check_columns`.
        fields: Which columns are meant.

    Returns:
        The trimmed fields; null becomes empty, numbers and lists become text.
    """
    if fields.chat_key:
        return _conversation_texts(batch.column(fields.chat_key))
    keys = (fields.instruction_key, fields.input_key, fields.output_key)
    return Texts(*(trimmed(batch.column(key)) if key else empty(batch.num_rows) for key in keys))


def is_text(kind: pa.DataType) -> bool:
    """Tells whether a column type is text of any Arrow layout."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner)


def as_text(column: pa.Array) -> pa.StringArray:
    """Turns any column into text; null stays null.

    Numbers are written as JSON writes them, lists and structures as JSON, NaN counts as null.

    Args:
        column: Values of one type.

    Returns:
        The same number of strings.

    Raises:
        UserError: If the column holds bytes.
    """
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if is_text(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        raise UserError("a column that should be text holds bytes; convert it before loading")
    if pa.types.is_floating(kind):
        values = (None if value is None or value != value else repr(value) for value in column.to_pylist())
        return pa.array(values, pa.string())
    if pa.types.is_nested(kind):
        return pa.array((None if value is None else _as_json(value) for value in column.to_pylist()), pa.string())
    return column.cast(pa.string())


def empty(rows: int) -> pa.StringArray:
    """Returns so many empty strings."""
    return pa.repeat(pa.scalar(""), rows)


def flat_messages(column: pa.Array) -> tuple[np.ndarray, pa.StringArray, pa.StringArray]:
    """Returns the messages of all rows one after the other: row number, role, content.

    Args:
        column: Lists of messages.
    """
    flat = pc.list_flatten(column)
    row = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    return row, as_text(pc.struct_field(flat, "role")), as_text(pc.struct_field(flat, "content"))


def ends(row: np.ndarray) -> np.ndarray:
    """Returns True for the last message of each row, given the row numbers of `flat_messages`."""
    last = np.ones(len(row), bool)
    last[:-1] = row[1:] != row[:-1]
    return last


def begins(row: np.ndarray) -> np.ndarray:
    """Returns True for the first message of each row, given the row numbers of `flat_messages`."""
    return ends(row[::-1])[::-1]


def is_role(roles: pa.StringArray, role: str) -> np.ndarray:
    """Returns True for the messages of a role."""
    return pc.equal(roles, role).fill_null(False).to_numpy(zero_copy_only=False)


def bad_conversations(column: pa.Array) -> np.ndarray:
    """Tells which conversations a chat template can't render.

    Args:
        column: Lists of messages.

    Returns:
        True per row where a role is unknown, a content is null, the system message is not the first, or user and
        assistant do not take turns beginning with the user.
    """
    row, roles, contents = flat_messages(column)
    role = pc.index_in(roles, value_set=pa.array(ROLES)).fill_null(-1).to_numpy(zero_copy_only=False)
    first = begins(row)
    before = np.roll(role, 1)
    opens = first | (np.roll(first, 1) & (before == 0))  # the first turn after an optional system message
    wrong = (role < 0) | contents.is_null().to_numpy(zero_copy_only=False)
    wrong |= ~first & (role == 0)
    wrong |= (role != 0) & opens & (role != 1)
    wrong |= ~opens & (role == before)
    spoken = np.bincount(row[role == 1], minlength=len(column)) if len(row) else np.zeros(len(column), int)
    return (np.bincount(row[wrong], minlength=len(column)) > 0) | (spoken == 0)


def _conversation_texts(column: pa.Array) -> Texts:
    row, roles, contents = flat_messages(column)
    contents = pc.utf8_trim_whitespace(contents.fill_null(""))
    is_instruction = begins(row) & is_role(roles, "system")
    is_answer = ends(row) & is_role(roles, "assistant")
    parts = (is_instruction, ~is_instruction & ~is_answer, is_answer)
    return Texts(*(_gathered(contents, row, part, len(column)) for part in parts))


def _gathered(contents: pa.StringArray, row: np.ndarray, chosen: np.ndarray, rows: int) -> pa.StringArray:
    counts = np.bincount(row[chosen], minlength=rows)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents.filter(pa.array(chosen))), "\n")


def _check_messages(field: pa.Field) -> None:
    kind = field.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    parts = (
        {part.name: part.type for part in kind.value_type} if is_list and pa.types.is_struct(kind.value_type) else {}
    )
    if all(name in parts and (is_text(parts[name]) or pa.types.is_null(parts[name])) for name in ("role", "content")):
        return
    found = f"messages with {', '.join(parts)}" if parts else str(kind)
    raise UserError(
        f"chat_key = {field.name!r}: expected a list of messages with a text `role` and a text `content`, "
        f"found {found[:200]}"
    )


def trimmed(column: pa.Array) -> pa.StringArray:
    """Returns a column as text without white space at its ends; null becomes empty."""
    return pc.utf8_trim_whitespace(as_text(column).fill_null(""))


def _joined(*columns: pa.StringArray) -> pa.StringArray:
    return pc.binary_join_element_wise(*columns, "\x1f")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
