"""The form of a conversation without its values, so that conversations of one form are tried once."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from llm_finetune.components.shared.rows.conversations import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation
from llm_finetune.components.tokens.tokenize.marks import function_of

Shape = tuple[Any, ...]
"""What of a message may decide how a template renders it; its role comes first."""


def without_repeats(conversation: Conversation) -> tuple[Sequence[int], Shape]:
    """Picks the messages that show all that a conversation has, in order.

    Of exchanges (a user and all that follows) with the same shape the first one stays, and the last exchange; inside
    of one, the same of the assistant's steps.

    Args:
        conversation: Any conversation.

    Returns:
        The indices of the messages, and the shape of what is left, tools included.
    """
    kept, shapes = _picked_messages(tuple([_turn(turn) for turn in conversation.turns]))
    return kept, (_tools(conversation.tools), shapes) if conversation.tools else shapes


@lru_cache(4096)
def _picked_messages(shapes: tuple[Shape, ...]) -> tuple[list[int], Shape]:
    exchanges = _parts(range(len(shapes)), "user", shapes)
    short = [_picked(_parts(exchange, "assistant", shapes), shapes) for exchange in exchanges]
    kept = _picked(short, shapes)
    return kept, tuple(shapes[i] for i in kept)


def _parts(indices: Sequence[int], role: str, shapes: tuple[Shape, ...]) -> list[list[int]]:
    """Divides messages before each one of a role."""
    parts: list[list[int]] = []
    for i in indices:
        if not parts or shapes[i][0] == role:
            parts.append([])
        parts[-1].append(i)
    return parts


def _picked(parts: list[list[int]], shapes: tuple[Shape, ...]) -> list[int]:
    """Returns the indices of the first part of each shape, and of the last part."""
    first: dict[Any, int] = {}
    for number, part in enumerate(parts):
        first.setdefault(tuple(shapes[i] for i in part), number)
    return list(chain.from_iterable(parts[number] for number in sorted({*first.values(), len(parts) - 1})))


def _turn(turn: dict[str, Any]) -> Shape:
    if len(turn) == 2:  # role and content, nearly always
        return turn["role"], bool(turn["content"])
    said = [field for field in ("content", *REASONING) if turn.get(field)]
    return turn["role"], *said, tuple(_call(call) for call in turn.get("tool_calls", ()))


def _call(call: dict[str, Any]) -> Shape:
    arguments = function_of(call).get("arguments")
    kinds = arguments.values() if isinstance(arguments, dict) else [arguments]
    return "function" in call, isinstance(arguments, dict), frozenset(type(value) for value in kinds)


def _tools(tools: list[dict[str, Any]]) -> Shape:
    return len(tools) > 1, any(function_of(tool).get("description") for tool in tools)
