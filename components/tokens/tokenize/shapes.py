"""The form of a conversation without its values, so that conversations of one form are tried once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from llm_finetune.components.shared.json_messages import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation
from llm_finetune.components.tokens.tokenize.marks import function_of


def without_repeats(conversation: Conversation) -> tuple[list[int], tuple[Any, ...]]:
    """Picks the messages that show all that a conversation has, in order.

    Of exchanges (a user and all that follows) with the same shape the first one stays, and the last exchange; inside
    of one, the same of the assistant's steps.

    Args:
        conversation: Any conversation.

    Returns:
        The indices of the messages, and the shape of what is left, tools included.
    """
    turns = conversation.turns
    shapes = [_turn(turn) for turn in turns]

    def begun_by(role: str) -> Callable[[int], bool]:
        return lambda i: bool(turns[i]["role"] == role)

    exchanges = _parts(range(len(turns)), begun_by("user"))
    short = [_picked(_parts(exchange, begun_by("assistant")), shapes) for exchange in exchanges]
    kept = _picked(short, shapes)
    return kept, (_tools(conversation.tools), tuple(shapes[i] for i in kept))


def _parts(indices: Sequence[int], begins: Callable[[int], bool]) -> Iterator[list[int]]:
    part: list[int] = []
    for i in indices:
        if part and begins(i):
            yield part
            part = []
        part.append(i)
    yield part


def _picked(parts: Iterator[list[int]] | list[list[int]], shapes: list[Any]) -> list[int]:
    """Returns the indices of the first part of each shape, and of the last part."""
    every = list(parts)
    if len(every) == 1:
        return every[0]
    numbers: dict[Any, int] = {}
    for number, part in enumerate(every):
        numbers.setdefault(tuple(shapes[i] for i in part), number)
    return list(chain.from_iterable(every[number] for number in sorted({*numbers.values(), len(every) - 1})))


def _turn(turn: dict[str, Any]) -> tuple[Any, ...]:
    """Returns what of a message may decide how a template renders it."""
    said = tuple(bool(turn.get(field)) for field in ("content", *REASONING))
    return turn["role"], said, tuple(_call(call) for call in turn.get("tool_calls", ()))


def _call(call: dict[str, Any]) -> tuple[Any, ...]:
    arguments = function_of(call).get("arguments")
    kinds = arguments.values() if isinstance(arguments, dict) else [arguments]
    return "function" in call, isinstance(arguments, dict), frozenset(type(value) for value in kinds)


def _tools(tools: list[dict[str, Any]] | None) -> tuple[Any, ...]:
    described = [bool(function_of(tool).get("description")) for tool in tools or ()]
    return bool(tools), len(described) > 1, any(described)
