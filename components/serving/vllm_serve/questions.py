"""Chooses the test prompts of a deployed model: golden_prompts, else validation rows, else a general prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.questions import Messages, Question

GENERAL = "Introduce yourself in one short sentence."


@dataclass(frozen=True)
class SmokePrompts:
    """The test prompts of a deployment.

    Attributes:
        conversations: The prompts, each a list of messages.
        origin: Description of their source.
        may_stop: Whether at least one answer is expected to end within the token limit.
    """

    conversations: list[Messages]
    origin: str
    may_stop: bool = True


def choose(settings: Settings, rows: Sequence[Question], context: int = 0) -> SmokePrompts:
    """Chooses the test prompts.

    Args:
        settings: The card's settings.
        rows: Validation rows as chat requests; empty for a model without a run.
        context: Maximum sequence length of the server in tokens; 0 if unknown.

    Returns:
        The golden prompts if given; else the rows that fit into the context, estimated at two bytes per token; else one
        general prompt.
    """
    if settings.golden_prompts:
        return SmokePrompts(settings.conversations, "golden_prompts")
    fitting = [row for row in rows if not context or row.size // 2 + settings.answer_tokens < context]
    if fitting:
        # If all references are longer than answer_tokens, an unfinished answer is expected.
        may_stop = any(len(row.reference) <= settings.answer_tokens for row in fitting)
        return SmokePrompts([row.messages for row in fitting], "validation rows", may_stop)
    why = "the validation rows do not fit into the context" if rows else "no validation rows were given"
    general = [{"role": "user", "content": GENERAL}]
    return SmokePrompts([general], f"a general prompt ({why}); set golden_prompts for your own")
