"""Text of a training row: the prompt exactly as the served model will render it, and the completion after it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from llm_finetune.components.shared.errors import UserError


@dataclass(frozen=True)
class RenderedRow:
    """A row before tokenisation.

    Attributes:
        prompt: All text before the last answer, special tokens written out.
        completion: The last answer with what the template puts behind it.
        answer: What the last answer says; empty where it only calls tools.
        trained: Character ranges of earlier answers inside `prompt` that are trained too, by the index of the message.
        untrained: Earlier answers that should be trained and can't be, because the template rewrites them.
    """

    prompt: str
    completion: str
    answer: str
    trained: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    untrained: int = 0


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as a chat template takes them.

    Attributes:
        turns: The messages; `content` is text, arguments of tool calls are mappings.
        tools: The tools on offer; None without any.
    """

    turns: Sequence[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @staticmethod
    def of(messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> "Conversation":
        """Reads a row.

        Args:
            messages: Role and content per turn. `tool_calls` is JSON text; other fields go to the template as they
                are, null ones left out.
            tools: The tools that the assistant may call, as JSON text.

        Raises:
            UserError: If one of the JSON texts is broken, or holds no list of objects.
        """
        return Conversation([_turn(message) for message in messages], _objects(tools, "tools") if tools else None)

    def text(self, tokenizer: Any, turns: int | None = None, generate: bool = False) -> str:
        """Renders the conversation.

        Args:
            tokenizer: A tokenizer with a chat template.
            turns: How many of its first messages to render; all by default.
            generate: Whether the beginning of an answer follows.

        Raises:
            UserError: With the template's own words, if it refuses the conversation.
        """
        try:
            return str(
                tokenizer.apply_chat_template(
                    self.turns[:turns], tools=self.tools, tokenize=False, add_generation_prompt=generate
                )
            )
        # Templates are code of others; these are what they raise where a value is not what they expect.
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise UserError(f"the chat template does not take the conversation: {error}") from error


def render_conversation(tokenizer: Any, conversation: Conversation, every_answer: bool = True) -> RenderedRow:
    """Renders a conversation with the tokenizer's chat template.

    An earlier answer is trained where the template only ever appends; one that it renders differently once the
    conversation has gone on (its reasoning stripped, for one) is context alone, as the model is never asked to write it
    so.

    Args:
        tokenizer: A tokenizer with a chat template.
        conversation: The conversation, its last turn the assistant's.
        every_answer: Whether earlier answers are trained too.

    Returns:
        The rendered row.

    Raises:
        UserError: If the template refuses the conversation, or does not render it as its prompt plus something.
    """
    turns = conversation.turns
    prompt, whole = conversation.text(tokenizer, len(turns) - 1, True), conversation.text(tokenizer)
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template does not render a conversation as its prompt followed by the answer, so prompt and "
            f"answer cannot be told apart. The prompt renders as {prompt[-80:]!r}, the conversation as {whole[-160:]!r}"
        )
    earlier = [i for i, turn in enumerate(turns[:-1]) if turn["role"] == "assistant"] if every_answer else []
    trained = {}
    for i in earlier:
        before, after = conversation.text(tokenizer, i, True), conversation.text(tokenizer, i + 1)
        if after.startswith(before) and prompt.startswith(after):
            trained[i] = (len(before), len(after.rstrip()))
    # Nothing that a template writes behind the end of the turn (a newline, mostly) is ever generated.
    completion = whole[len(prompt) :].rstrip()
    return RenderedRow(prompt, completion, turns[-1]["content"].strip(), trained, len(earlier) - len(trained))


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    turn = {name: value for name, value in message.items() if value and name != "content"}
    turn["content"] = message.get("content") or ""  # what a server makes of the null beside tool calls
    if "tool_calls" in turn:
        turn["tool_calls"] = [_with_parsed_arguments(call) for call in _objects(turn["tool_calls"], "tool_calls")]
    return turn


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool call whose arguments are a mapping, as templates want them and servers give them."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    arguments = _parsed(function["arguments"] or "{}", "arguments of a tool call")
    return {**call, "function": {**function, "arguments": arguments}}


def _objects(text: str, name: str) -> list[dict[str, Any]]:
    value = _parsed(text, name)
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise UserError(f"{name} is not a list of objects: {text[:80]!r}. Write [{{…}}], as OpenAI's API takes it")
    return value


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}): {text[:80]!r}") from error
