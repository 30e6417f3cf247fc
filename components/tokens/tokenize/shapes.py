"""The shape of a conversation: its structure without values. Conversations of the same shape are checked once."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from llm_finetune.components.shared.rows.conversations import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation, JsonObject
from llm_finetune.components.tokens.tokenize.placeholders import function_of

Shape = tuple[Any, ...]
"""What may determine how a template renders a message; its role comes first."""


def distinct_messages(conversation: Conversation) -> tuple[Sequence[int], Shape]:
    """Selects messages that contain every shape of a conversation, in order.

    Of exchanges (a user message and all that follow it) with the same shape, the first one is kept, and the last
    exchange; within an exchange, the same applies to the assistant's steps.

    Args:
        conversation: The conversation.

    Returns:
        The indices of the messages, and their shape, with that of the tools.
    """
    kept, shapes = _select_messages(tuple([_turn(turn) for turn in conversation.turns]))
    return kept, (_tools(conversation.tools), shapes) if conversation.tools else shapes


@lru_cache(4096)
def _select_messages(shapes: tuple[Shape, ...]) -> tuple[list[int], Shape]:
    exchanges = _split(range(len(shapes)), "user", shapes)
    short = [_select(_split(exchange, "assistant", shapes), shapes) for exchange in exchanges]
    kept = _select(short, shapes)
    return kept, tuple(shapes[i] for i in kept)


def _split(indices: Sequence[int], role: str, shapes: tuple[Shape, ...]) -> list[list[int]]:
    """Splits messages before each message of a role."""
    parts: list[list[int]] = []
    for i in indices:
        if not parts or shapes[i][0] == role:
            parts.append([])
        parts[-1].append(i)
    return parts


def _select(parts: list[list[int]], shapes: tuple[Shape, ...]) -> list[int]:
    """Returns the indices of the first part of each shape, and of the last part."""
    first: dict[Shape, int] = {}
    for number, part in enumerate(parts):
        first.setdefault(tuple(shapes[i] for i in part), number)
    return list(chain.from_iterable(parts[number] for number in sorted({*first.values(), len(parts) - 1})))


def _turn(turn: JsonObject) -> Shape:
    if len(turn) == 2:  # role and content, the most frequent case
        return turn["role"], bool(turn["content"])
    texts = [field for field in ("content", *REASONING) if turn.get(field)]
    return turn["role"], *texts, tuple(_call(call) for call in turn.get("tool_calls", ()))


def _call(call: JsonObject) -> Shape:
    arguments = function_of(call).get("arguments")
    values = arguments.values() if isinstance(arguments, dict) else [arguments]
    return "function" in call, isinstance(arguments, dict), frozenset(type(value) for value in values)


def _tools(tools: list[JsonObject]) -> Shape:
    return len(tools) > 1, any(function_of(tool).get("description") for tool in tools)
