"""Conversations: the layouts that they come in, made one; and which of them a chat template can render.

The one layout is a list of messages with a `role` (system, user, assistant, tool) and a `content`. Where the data has
tool calls, a message has three more texts: `tool_calls` (the assistant's calls as a JSON list, as OpenAI writes them),
`tool_call_id` and `name` (of a tool's answer). They are text because no two calls have the same arguments, and Arrow
would give every call the arguments of all.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows import json_messages
from llm_finetune.components.shared.rows.columns import as_json, as_text, is_text
from llm_finetune.components.shared.rows.json_messages import ROLE_NAMES

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
TOOL_FIELDS = ("tool_calls", "tool_call_id", "name")
TOOL_MESSAGE = pa.struct([*MESSAGE, *(pa.field(name, pa.string()) for name in TOOL_FIELDS)])
TOOLS = "tools"
"""Column with the tools that a row's assistant may call."""

ROLES = ("system", "user", "assistant", "tool")
_CALLING = len(ROLES)  # an assistant that calls tools, told apart from one that answers
_START = _CALLING + 1
_FOLLOWS: dict[str | int, tuple[str | int, ...]] = {
    _START: ("system", "user"),
    "system": ("user",),
    "user": ("assistant", _CALLING),
    "assistant": ("user",),
    "tool": ("tool", "assistant", _CALLING),
    _CALLING: ("tool",),
}


def check_conversations(field: pa.Field, setting: str) -> None:
    """Checks that a column holds conversations of a known layout.

    Args:
        field: The column.
        setting: How it was chosen, for the message.

    Raises:
        UserError: Naming what was found.
    """
    if is_text(field.type):
        return
    parts = _parts(field.type)
    openai, sharegpt = {"role", "content"} <= set(parts), {"from", "value"} <= set(parts)
    if openai and sharegpt:
        raise UserError(
            f"{setting} = {field.name!r} mixes two layouts: some messages have role and content, others from and "
            "value. Convert one of them, or load them as two datasets"
        )
    names = ("role", "content") if openai else ("from", "value")
    if (openai or sharegpt) and all(is_text(parts[name]) or pa.types.is_null(parts[name]) for name in names):
        return
    if openai and pa.types.is_list(parts["content"]):
        raise UserError(
            f"{setting} = {field.name!r}: the content of its messages is a list of parts (text, images); only messages "
            "whose content is text can be trained on"
        )
    found = f"messages with {', '.join(parts)}" if parts else str(field.type)
    raise UserError(
        f"{setting} = {field.name!r}: expected a list of messages with a text `role` and a text `content` (or `from` "
        f"and `value`), found {found[:200]}"
    )


def is_sharegpt(kind: pa.DataType) -> bool:
    """Tells whether a column's messages have `from` and `value`."""
    return "from" in _parts(kind)


def is_conversation(kind: pa.DataType) -> bool:
    """Tells whether a column's type is that of conversations."""
    parts = set(_parts(kind))
    return {"role", "content"} <= parts or {"from", "value"} <= parts


def as_messages(column: pa.Array, with_tools: bool) -> pa.ListArray:
    """Makes conversations of any layout lists of messages.

    ShareGPT's `human` is the user, `gpt` the assistant, `function_call` an assistant's tool call, `observation` its
    answer; OpenAI's `developer` is the system. A row of JSON text is read as the list that it holds.

    Args:
        column: A column that `check_conversations` has passed.
        with_tools: Whether the dataset has a column `tools`.

    Returns:
        Lists of `MESSAGE`, or of `TOOL_MESSAGE` where there may be tool calls; a row that can't be read is null.
    """
    if is_text(column.type):
        column = pa.array(map(json_messages.messages, as_text(column).to_pylist()), pa.list_(TOOL_MESSAGE))
    parts = _parts(column.type)
    kind = TOOL_MESSAGE if with_tools or {"tool_calls", "tool_call_id"} & set(parts) else MESSAGE
    if column.type == pa.list_(kind):
        return column
    flat = pc.list_flatten(column)
    role, content = ("from", "value") if "from" in parts else ("role", "content")
    said = as_text(pc.struct_field(flat, role))
    values = [_renamed(said), as_text(pc.struct_field(flat, content))]
    if kind == TOOL_MESSAGE:
        nothing = pa.nulls(len(flat), pa.string())
        values += [as_json(pc.struct_field(flat, name)) if name in parts else nothing for name in TOOL_FIELDS]
        values[1], values[2] = _calls(said, values[1], values[2])
    else:  # without a place for the call it would be trained as if it had been said
        values[0] = pc.if_else(pc.equal(said, "function_call"), pa.scalar(None, pa.string()), values[0])
    messages = pa.StructArray.from_arrays(values, fields=list(kind))
    return pa.ListArray.from_arrays(_list_offsets(column), messages, mask=column.is_null())


def flat_messages(column: pa.Array) -> tuple[np.ndarray, pa.StructArray]:
    """Returns the row number of every message, and all messages one after the other.

    Args:
        column: Lists of messages, as `as_messages` gives.
    """
    return pc.list_parent_indices(column).to_numpy(zero_copy_only=False), pc.list_flatten(column)


def spoken(messages: pa.StructArray) -> pa.StringArray:
    """Returns what each message says, trimmed: its content, and the JSON of its tool calls."""
    content = pc.utf8_trim_whitespace(pc.struct_field(messages, "content").fill_null(""))
    if messages.type == MESSAGE:
        return content
    calls = pc.struct_field(messages, "tool_calls").fill_null("")
    gap = pc.if_else(pc.or_(pc.equal(content, ""), pc.equal(calls, "")), "", "\n")
    return pc.binary_join_element_wise(content, gap, calls, "")


def ends(row: np.ndarray) -> np.ndarray:
    """Returns True for the last message of each row, given the row numbers of `flat_messages`."""
    last = np.ones(len(row), bool)
    last[:-1] = row[1:] != row[:-1]
    return last


def begins(row: np.ndarray) -> np.ndarray:
    """Returns True for the first message of each row, given the row numbers of `flat_messages`."""
    return ends(row[::-1])[::-1]


def is_role(messages: pa.StructArray, role: str) -> np.ndarray:
    """Returns True for the messages of a role."""
    return pc.equal(pc.struct_field(messages, "role"), role).fill_null(False).to_numpy(zero_copy_only=False)


def bad_conversations(column: pa.Array) -> np.ndarray:
    """Tells which conversations a chat template can't render.

    Args:
        column: Lists of messages, as `as_messages` gives.

    Returns:
        True per row where a role is unknown, a content is null (but for a tool call), the system message is not the
        first, user and assistant do not take turns beginning with the user, or a tool answers without having been
        called.
    """
    row, messages = flat_messages(column)
    roles = pc.index_in(pc.struct_field(messages, "role"), value_set=pa.array(ROLES)).fill_null(-1)
    role = roles.to_numpy(zero_copy_only=False).astype(np.int64)
    silent = pc.struct_field(messages, "content").is_null().to_numpy(zero_copy_only=False)
    if messages.type == TOOL_MESSAGE:
        calls = pc.struct_field(messages, "tool_calls").is_valid().to_numpy(zero_copy_only=False)
        role = np.where((role == ROLES.index("assistant")) & calls, _CALLING, role)
        silent = silent & ~calls
    before = np.where(begins(row), _START, np.roll(role, 1))
    wrong = ~_ALLOWED[before, role] | silent
    user = role == ROLES.index("user")
    spoke = np.bincount(row[user], minlength=len(column)) if len(row) else np.zeros(len(column), int)
    return (np.bincount(row[wrong], minlength=len(column)) > 0) | (spoke == 0)


def _parts(kind: pa.DataType) -> dict[str, pa.DataType]:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return {part.name: part.type for part in kind.value_type} if is_list and pa.types.is_struct(kind.value_type) else {}


def _renamed(roles: pa.StringArray) -> pa.StringArray:
    place = pc.index_in(roles, value_set=pa.array(list(ROLE_NAMES)))
    return pc.coalesce(pa.array(list(ROLE_NAMES.values())).take(place), roles)


def _calls(
    said: pa.StringArray, content: pa.StringArray, calls: pa.StringArray
) -> tuple[pa.StringArray, pa.StringArray]:
    """Moves ShareGPT's function calls from the content to the calls, and empties a list without calls."""
    calls = pc.if_else(pc.is_in(calls, value_set=pa.array(["", "[]", "null"])), pa.scalar(None, pa.string()), calls)
    is_call = pc.equal(said, "function_call").fill_null(False)
    if not pc.any(is_call).as_py():
        return content, calls
    written = pa.array([json_messages.call(text) for text in content.filter(is_call).to_pylist()], pa.string())
    return pc.if_else(is_call, pa.scalar(None, pa.string()), content), pc.replace_with_mask(calls, is_call, written)


def _list_offsets(column: pa.Array) -> pa.Array:
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _allowed() -> np.ndarray:
    """Returns which role may follow which; the last column stands for an unknown role (-1)."""
    table = np.zeros((_START + 2, _START + 2), bool)
    for before, followers in _FOLLOWS.items():
        for after in followers:
            table[_code(before), _code(after)] = True
    return table


def _code(role: str | int) -> int:
    return ROLES.index(role) if isinstance(role, str) else role


_ALLOWED = _allowed()
