"""Converts conversations of all layouts to one, and finds those that chat templates cannot render.

The common layout is a list of messages with a `role` (system, user, assistant, tool) and a `content`. For data with
tool calls, messages have three more text fields: `tool_calls` (JSON list in OpenAI's format), `tool_call_id` and
`name` (of a tool result). They are text because calls have different arguments, and an Arrow struct would give every
call the arguments of all.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.columns import as_json, as_text, is_text

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
TOOL_FIELDS = ("tool_calls", "tool_call_id", "name")
TOOL_MESSAGE = pa.struct([*MESSAGE, *(pa.field(name, pa.string()) for name in TOOL_FIELDS)])
TOOLS = "tools"
"""Column with the tools that the assistant can call."""

ROLE_NAMES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Other names of roles, for example in ShareGPT data."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields that hold the assistant's reasoning in some datasets."""

ROLES = ("system", "user", "assistant", "tool")
_CALLING = len(ROLES)  # an assistant message with tool calls
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
    """Checks that a column holds conversations of a supported layout.

    Args:
        field: The column.
        setting: Setting that names the column, for the message.

    Raises:
        UserError: If the column has another type.
    """
    if is_text(field.type):
        return
    parts = _message_fields(field.type)
    openai, sharegpt = {"role", "content"} <= set(parts), {"from", "value"} <= set(parts)
    if openai and sharegpt:
        raise UserError(
            f"{setting} = {field.name!r} mixes two layouts: messages with role and content, and messages with from and "
            "value. Convert one of them, or load them as two datasets"
        )
    names = ("role", "content") if openai else ("from", "value")
    if (openai or sharegpt) and all(is_text(parts[name]) or pa.types.is_null(parts[name]) for name in names):
        return
    if openai and pa.types.is_list(parts["content"]):
        raise UserError(
            f"{setting} = {field.name!r}: the content of the messages is a list of parts (text, images); only text "
            "content is supported"
        )
    found = f"messages with {', '.join(parts)}" if parts else str(field.type)
    raise UserError(
        f"{setting} = {field.name!r}: expected a list of messages with a text `role` and a text `content` (or `from` "
        f"and `value`), found {found[:200]}"
    )


def is_sharegpt(kind: pa.DataType) -> bool:
    """Returns whether the messages of a type have `from` and `value`."""
    return "from" in _message_fields(kind)


def is_conversation(kind: pa.DataType) -> bool:
    """Returns whether a type is a list of messages."""
    parts = set(_message_fields(kind))
    return {"role", "content"} <= parts or {"from", "value"} <= parts


def as_messages(column: pa.Array, with_tools: bool) -> pa.ListArray:
    """Converts conversations of any layout to lists of messages.

    ShareGPT's `human` becomes user, `gpt` assistant, `function_call` a tool call of the assistant and `observation` a
    tool result; OpenAI's `developer` becomes system. JSON text is parsed.

    Args:
        column: Column that passed `check_conversations`.
        with_tools: Whether the dataset has a column `tools`.

    Returns:
        Lists of `MESSAGE`, or of `TOOL_MESSAGE` if there can be tool calls; null for rows that cannot be parsed.
    """
    if is_text(column.type):
        column = pa.array(map(_parse_messages, as_text(column).to_pylist()), pa.list_(TOOL_MESSAGE))
    parts = _message_fields(column.type)
    kind = TOOL_MESSAGE if with_tools or {"tool_calls", "tool_call_id"} & set(parts) else MESSAGE
    if column.type == pa.list_(kind):
        return column
    flat = pc.list_flatten(column)
    role, content = ("from", "value") if "from" in parts else ("role", "content")
    raw_role = as_text(pc.struct_field(flat, role))
    values = [_standard_roles(raw_role), as_text(pc.struct_field(flat, content))]
    if kind == TOOL_MESSAGE:
        nulls = pa.nulls(len(flat), pa.string())
        values += [as_json(pc.struct_field(flat, name)) if name in parts else nulls for name in TOOL_FIELDS]
        values[1], values[2] = _move_function_calls(raw_role, values[1], values[2])
    else:  # a call cannot be stored, and must not be trained as text
        values[0] = pc.if_else(pc.equal(raw_role, "function_call"), pa.scalar(None, pa.string()), values[0])
    messages = pa.StructArray.from_arrays(values, fields=list(kind))
    return pa.ListArray.from_arrays(_list_offsets(column), messages, mask=column.is_null())


def flatten_messages(column: pa.Array) -> tuple[np.ndarray, pa.StructArray]:
    """Returns the row number of each message, and all messages.

    Args:
        column: Lists of messages, as returned by `as_messages`.
    """
    return pc.list_parent_indices(column).to_numpy(zero_copy_only=False), pc.list_flatten(column)


def message_texts(messages: pa.StructArray) -> pa.StringArray:
    """Returns the trimmed text of each message: its content, and the JSON of its tool calls."""
    content = pc.utf8_trim_whitespace(pc.struct_field(messages, "content").fill_null(""))
    if messages.type == MESSAGE:
        return content
    calls = pc.struct_field(messages, "tool_calls").fill_null("")
    gap = pc.if_else(pc.or_(pc.equal(content, ""), pc.equal(calls, "")), "", "\n")
    return pc.binary_join_element_wise(content, gap, calls, "")


def is_last_message(row: np.ndarray) -> np.ndarray:
    """Returns True for the last message of each row, given the row numbers of `flatten_messages`."""
    last = np.ones(len(row), bool)
    last[:-1] = row[1:] != row[:-1]
    return last


def is_first_message(row: np.ndarray) -> np.ndarray:
    """Returns True for the first message of each row, given the row numbers of `flatten_messages`."""
    return is_last_message(row[::-1])[::-1]


def is_role(messages: pa.StructArray, role: str) -> np.ndarray:
    """Returns True for messages with a role."""
    has_role: np.ndarray = (
        pc.equal(pc.struct_field(messages, "role"), role).fill_null(False).to_numpy(zero_copy_only=False)
    )
    return has_role


def bad_conversations(column: pa.Array) -> np.ndarray:
    """Returns which conversations a chat template cannot render.

    Args:
        column: Lists of messages, as returned by `as_messages`.

    Returns:
        True for rows in which a role is unknown, a content is null (except with a tool call), the system message is not
        the first, user and assistant do not alternate starting with the user, or a tool result has no call.
    """
    row, messages = flatten_messages(column)
    roles = pc.index_in(pc.struct_field(messages, "role"), value_set=pa.array(ROLES)).fill_null(-1)
    role = roles.to_numpy(zero_copy_only=False).astype(np.int64)
    no_content = pc.struct_field(messages, "content").is_null().to_numpy(zero_copy_only=False)
    if messages.type == TOOL_MESSAGE:
        calls = pc.struct_field(messages, "tool_calls").is_valid().to_numpy(zero_copy_only=False)
        role = np.where((role == ROLES.index("assistant")) & calls, _CALLING, role)
        no_content = no_content & ~calls
    previous = np.where(is_first_message(row), _START, np.roll(role, 1))
    wrong = ~_ALLOWED[previous, role] | no_content
    user = role == ROLES.index("user")
    user_messages = np.bincount(row[user], minlength=len(column)) if len(row) else np.zeros(len(column), int)
    bad: np.ndarray = (np.bincount(row[wrong], minlength=len(column)) > 0) | (user_messages == 0)
    return bad


def has_field(text: str | None, field: str) -> bool:
    """Returns whether a message in a JSON conversation has a non-empty value in a field."""
    values = (message.get(field) for message in _message_dicts(text) or [])
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _message_fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return {part.name: part.type for part in kind.value_type} if is_list and pa.types.is_struct(kind.value_type) else {}


def _standard_roles(roles: pa.StringArray) -> pa.StringArray:
    place = pc.index_in(roles, value_set=pa.array(list(ROLE_NAMES)))
    return pc.coalesce(pa.array(list(ROLE_NAMES.values())).take(place), roles)


def _move_function_calls(
    raw_role: pa.StringArray, content: pa.StringArray, calls: pa.StringArray
) -> tuple[pa.StringArray, pa.StringArray]:
    """Moves ShareGPT's function calls from the content to the tool calls; empty call lists become null."""
    calls = pc.if_else(pc.is_in(calls, value_set=pa.array(["", "[]", "null"])), pa.scalar(None, pa.string()), calls)
    is_call = pc.equal(raw_role, "function_call").fill_null(False)
    if not pc.any(is_call).as_py():
        return content, calls
    written = pa.array([_openai_calls(text) for text in content.filter(is_call).to_pylist()], pa.string())
    return pc.if_else(is_call, pa.scalar(None, pa.string()), content), pc.replace_with_mask(calls, is_call, written)


def _list_offsets(column: pa.Array) -> pa.Array:
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _allowed() -> np.ndarray:
    """Returns a table of allowed role transitions; the last column is for unknown roles (-1)."""
    table = np.zeros((_START + 2, _START + 2), bool)
    for previous, followers in _FOLLOWS.items():
        for after in followers:
            table[_role_index(previous), _role_index(after)] = True
    return table


def _role_index(role: str | int) -> int:
    return ROLES.index(role) if isinstance(role, str) else role


def _openai_calls(text: str | None) -> str | None:
    """Converts ShareGPT's function call to OpenAI's list of tool calls; None if it is not JSON."""
    try:
        parsed = json.loads(text or "")
    except ValueError:
        return None  # without content and call, the conversation counts as bad
    functions = parsed if isinstance(parsed, list) else [parsed]
    return json.dumps([{"type": "function", "function": function} for function in functions], ensure_ascii=False)


def _parse_messages(text: str | None) -> list[dict[str, str | None]] | None:
    """Parses a conversation in JSON to messages with the fields of `TOOL_MESSAGE`; None if it is not one."""
    messages = _message_dicts(text)
    return None if messages is None else [_standard_message(message) for message in messages]


def _message_dicts(text: str | None) -> list[dict[str, Any]] | None:
    try:
        parsed = json.loads(text or "")
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) and all(isinstance(item, dict) for item in parsed) else None


def _standard_message(message: dict[str, Any]) -> dict[str, str | None]:
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    calls = message.get("tool_calls")
    if role == "function_call":
        content, calls = None, _openai_calls(content if isinstance(content, str) else json.dumps(content))
    texts = {"role": role, "content": content, "tool_call_id": message.get("tool_call_id"), "name": message.get("name")}
    result: dict[str, str | None] = {name: value if isinstance(value, str) else None for name, value in texts.items()}
    result["role"] = ROLE_NAMES.get(result["role"] or "", result["role"])
    result["tool_calls"] = calls if isinstance(calls, str) or not calls else json.dumps(calls, ensure_ascii=False)
    return result


_ALLOWED = _allowed()
