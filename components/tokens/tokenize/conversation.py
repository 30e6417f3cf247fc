"""Text of a training row: the prompt exactly as the served model will render it, and the completion after it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from llm_finetune.components.shared.errors import UserError


@dataclass(frozen=True)
class RenderedRow:
    """A row before tokenisation.

    Attributes:
        prompt: All text before the last answer, special tokens written out.
        completion: The last answer with what the template puts behind it.
        trained: Character ranges of earlier answers inside `prompt` that are trained too.
        untrained: Earlier answers that should be trained and can't be, because the template rewrites them.
    """

    prompt: str
    completion: str
    trained: tuple[tuple[int, int], ...] = ()
    untrained: int = 0


def render_conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str | None = None, every_answer: bool = True
) -> RenderedRow:
    """Renders a conversation with the tokenizer's chat template.

    An earlier answer is trained where the template only ever appends; one that it renders differently once the
    conversation has gone on (its reasoning stripped, for one) is context alone, as the model is never asked to write it
    so.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Role and content per turn, the last one the assistant's. `tool_calls` is JSON text; other fields go
            to the template as they are, null ones left out.
        tools: The tools that the assistant may call, as JSON text.
        every_answer: Whether earlier answers are trained too.

    Returns:
        The rendered row.

    Raises:
        UserError: If the template refuses the conversation, or does not render it as its prompt plus something.
    """
    turns = [_turn(message) for message in messages]
    offered = _parsed(tools, "tools") if tools else None

    def render(part: Sequence[Mapping[str, Any]], generate: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(part, tools=offered, tokenize=False, add_generation_prompt=generate)
            )
        except (TemplateError, TypeError) as error:
            raise UserError(f"the chat template does not take the conversation: {error}") from error

    prompt, whole = render(turns[:-1], True), render(turns, False)
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template does not render a conversation as its prompt followed by the answer, so prompt and "
            f"answer cannot be told apart. The prompt renders as {prompt[-80:]!r}, the conversation as {whole[-160:]!r}"
        )
    earlier = [i for i, turn in enumerate(turns[:-1]) if turn["role"] == "assistant"] if every_answer else []
    trained = []
    for i in earlier:
        before, after = render(turns[:i], True), render(turns[: i + 1], False)
        if after.startswith(before) and prompt.startswith(after):
            trained.append((len(before), len(after.rstrip())))
    # Nothing that a template writes behind the end of the turn (a newline, mostly) is ever generated.
    return RenderedRow(prompt, whole[len(prompt) :].rstrip(), tuple(trained), len(earlier) - len(trained))


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    turn = {name: value for name, value in message.items() if value and name != "content"}
    turn["content"] = message.get("content") or ""  # what a server makes of the null beside tool calls
    if "tool_calls" in turn:
        turn["tool_calls"] = [_with_parsed_arguments(call) for call in _parsed(turn["tool_calls"], "tool_calls")]
    return turn


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool call whose arguments are a mapping, as templates want them and servers give them."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    arguments = _parsed(function["arguments"] or "{}", "arguments of a tool call")
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}): {text[:80]!r}") from error
