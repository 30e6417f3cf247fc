"""Messages and tool calls that are written as JSON text."""

import json
from typing import Any

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
"""Other names of the roles, those of ShareGPT among them."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields in which data has what the assistant thought before it answered."""


def call(text: str | None) -> str | None:
    """Returns ShareGPT's function call as OpenAI's list of tool calls; None if it is not JSON."""
    try:
        said = json.loads(text or "")
    except ValueError:
        return None  # neither content nor call: the conversation is dropped as a bad one
    functions = said if isinstance(said, list) else [said]
    return json.dumps([{"type": "function", "function": function} for function in functions], ensure_ascii=False)


def messages(text: str | None) -> list[dict[str, Any]] | None:
    """Returns the conversation that a JSON text holds, with the fields of `TOOL_MESSAGE`; None if it holds none."""
    said = _list(text)
    return None if said is None else [_message(message) for message in said]


def has(text: str | None, field: str) -> bool:
    """Tells whether a message of the conversation that a JSON text holds has something in a field."""
    values = (message.get(field) for message in _list(text) or [])
    return any(value.strip() if isinstance(value, str) else value for value in values)


def _list(text: str | None) -> list[dict[str, Any]] | None:
    try:
        said = json.loads(text or "")
    except ValueError:
        return None
    return said if isinstance(said, list) and all(isinstance(message, dict) for message in said) else None


def _message(said: dict[str, Any]) -> dict[str, Any]:
    role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
    calls = said.get("tool_calls")
    if role == "function_call":
        content, calls = None, call(content if isinstance(content, str) else json.dumps(content))
    texts = {"role": role, "content": content, "tool_call_id": said.get("tool_call_id"), "name": said.get("name")}
    message: dict[str, Any] = {name: value if isinstance(value, str) else None for name, value in texts.items()}
    message["role"] = ROLE_NAMES.get(message["role"], message["role"])
    message["tool_calls"] = calls if isinstance(calls, str) or not calls else json.dumps(calls, ensure_ascii=False)
    return message
