"""Text of a training row: the prompt exactly as the served model will render it, and the completion after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_finetune.components.shared.errors import UserError


@dataclass(frozen=True)
class RenderedRow:
    """A row before tokenisation.

    Attributes:
        prompt: All text before the last answer, special tokens written out.
        completion: The last answer with what the template puts behind it.
        trained: Character ranges of earlier answers inside `prompt` that are trained too.
    """

    prompt: str
    completion: str
    trained: tuple[tuple[int, int], ...] = ()


def render_conversation(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> RenderedRow:
    """Renders a conversation with the tokenizer's chat template.

    Every answer is trained where the template only ever appends; a template that rewrites earlier turns (such as one
    that strips old reasoning) leaves only the last answer to train on, as the earlier ones are never rendered so again.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Role and content per turn, the last one the assistant's.

    Returns:
        The rendered row.

    Raises:
        UserError: If the template does not render the conversation as its prompt plus something.
    """

    def render(turns: Sequence[Mapping[str, Any]], generate: bool) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))

    prompt, whole = render(messages[:-1], True), render(messages, False)
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template does not render a conversation as its prompt followed by the answer, so prompt and "
            f"answer cannot be told apart. The prompt renders as {prompt[-80:]!r}, the conversation as {whole[-160:]!r}"
        )
    trained = []
    for turn in range(len(messages) - 1):
        if messages[turn]["role"] != "assistant":
            continue
        before, after = render(messages[:turn], True), render(messages[: turn + 1], False)
        if after.startswith(before) and prompt.startswith(after):
            trained.append((len(before), len(after.rstrip())))
    # Nothing that a template writes behind the end of the turn (a newline, mostly) is ever generated.
    return RenderedRow(prompt, whole[len(prompt) :].rstrip(), tuple(trained))
