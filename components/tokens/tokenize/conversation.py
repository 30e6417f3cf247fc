"""Renders a training row: the prompt exactly as the server renders it, and the completion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2 import TemplateError

from llm_finetune.components.shared.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object, such as a message, a tool or a tool call; its fields depend on the data."""


@dataclass(frozen=True)
class RenderedRow:
    """A row before tokenization.

    Attributes:
        prompt: All text before the last answer, with its special tokens.
        completion: The last answer and the end of the turn.
        answer: Content of the last answer; empty if it only calls tools.
        trained: Character ranges in `prompt` of earlier answers that are trained too, by index of the message.
        untrained: Number of earlier answers that cannot be trained, because the template rewrites them.
    """

    prompt: str
    completion: str
    answer: str
    trained: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    untrained: int = 0


@dataclass(frozen=True)
class Conversation:
    """Messages and tools in the form that chat templates expect.

    Attributes:
        turns: The messages; `content` is text, arguments of tool calls are mappings.
        tools: Definitions of tools; None without any.
    """

    turns: Sequence[JsonObject]
    tools: list[JsonObject] | None = None

    @staticmethod
    def from_row(messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> "Conversation":
        """Builds a conversation from a row.

        Args:
            messages: Role and content per turn. `tool_calls` is JSON text. Other fields are passed to the template as
                they are, except null.
            tools: Definitions of tools, as JSON text.

        Raises:
            UserError: If one of the JSON texts is invalid, or not a list of objects.
        """
        return Conversation([_turn(message) for message in messages], _parse_objects(tools, "tools") if tools else None)

    def render(self, tokenizer: "PreTrainedTokenizerBase", turns: int | None = None, generate: bool = False) -> str:
        """Renders the conversation.

        Args:
            tokenizer: A tokenizer with a chat template.
            turns: Number of leading messages to render; None for all.
            generate: Whether to add the generation prompt.

        Raises:
            UserError: With the template's own message, if it refuses the conversation.
        """
        try:
            return str(
                tokenizer.apply_chat_template(
                    list(self.turns[:turns]),
                    tools=None if self.tools is None else list(self.tools),
                    tokenize=False,
                    add_generation_prompt=generate,
                )
            )
        # Templates are third-party code; they raise these errors for unexpected values.
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise UserError(f"the chat template does not accept the conversation: {error}") from error


def render_conversation(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, every_answer: bool = True
) -> RenderedRow:
    """Renders a conversation with the tokenizer's chat template.

    An earlier answer is trained if the template renders it in the same way in later turns. If it renders the answer
    differently there (for example without its reasoning), the answer is context only, because the model never
    generates it in that form.

    Args:
        tokenizer: A tokenizer with a chat template.
        conversation: The conversation; its last turn is the assistant's.
        every_answer: Whether earlier answers are trained too.

    Returns:
        The rendered row.

    Raises:
        UserError: If the template refuses the conversation, or does not render it as the prompt followed by the answer.
    """
    turns = conversation.turns
    prompt, whole = conversation.render(tokenizer, len(turns) - 1, True), conversation.render(tokenizer)
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template does not render a conversation as its prompt followed by the answer, so prompt and "
            f"answer cannot be separated. The prompt renders as {prompt[-80:]!r}, the conversation as {whole[-160:]!r}"
        )
    earlier = [i for i, turn in enumerate(turns[:-1]) if turn["role"] == "assistant"] if every_answer else []
    trained = {}
    for i in earlier:
        before, after = conversation.render(tokenizer, i, True), conversation.render(tokenizer, i + 1)
        if after.startswith(before) and prompt.startswith(after):
            trained[i] = (len(before), len(after.rstrip()))
    # Text that a template writes after the end of the turn (mostly a newline) is never generated.
    completion = whole[len(prompt) :].rstrip()
    return RenderedRow(prompt, completion, turns[-1]["content"].strip(), trained, len(earlier) - len(trained))


def _turn(message: Mapping[str, Any]) -> JsonObject:
    turn = {name: value for name, value in message.items() if value and name != "content"}
    turn["content"] = message.get("content") or ""  # servers render null, as in messages with tool calls, as empty text
    if "tool_calls" in turn:
        turn["tool_calls"] = [_with_parsed_arguments(call) for call in _parse_objects(turn["tool_calls"], "tool_calls")]
    return turn


def _with_parsed_arguments(call: JsonObject) -> JsonObject:
    """Returns a tool call whose arguments are a mapping, as templates expect and servers pass them."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    arguments = _parse(function["arguments"] or "{}", "arguments of a tool call")
    return {**call, "function": {**function, "arguments": arguments}}


def _parse_objects(text: str, name: str) -> list[JsonObject]:
    value = _parse(text, name)
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise UserError(f"{name} is not a list of objects: {text[:80]!r}. Write [{{…}}], as in OpenAI's API")
    return value


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({error}): {text[:80]!r}") from error
