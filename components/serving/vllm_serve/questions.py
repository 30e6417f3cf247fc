"""What a deployed model is asked: the user's own questions, else validation rows, else a general one."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.questions import Messages, Question

GENERAL = "Introduce yourself in one short sentence."


@dataclass(frozen=True)
class Asked:
    """Questions and where they come from.

    Attributes:
        conversations: The questions, each a list of messages.
        origin: Where they come from, in words.
        may_stop: Whether an answer is expected to end within the token limit.
    """

    conversations: list[Messages]
    origin: str
    may_stop: bool = True


def choose(settings: Settings, rows: Sequence[Question], context: int = 0) -> Asked:
    """Chooses the questions.

    Args:
        settings: The card's settings.
        rows: Validation rows as chat requests; none for a model that is served without its run.
        context: Longest sequence that will be served; 0 if it is not known.

    Returns:
        The golden prompts where there are any; else the rows that fit the context, at two bytes a token; else one
        question that fits any model.
    """
    if settings.golden_prompts:
        return Asked(settings.conversations, "golden_prompts")
    fitting = [row for row in rows if not context or row.size // 2 + settings.answer_tokens < context]
    if fitting:
        # An answer that is longer in the data too is no sign that the model can't end.
        may_stop = any(len(row.reference) <= settings.answer_tokens for row in fitting)
        return Asked([row.messages for row in fitting], "validation rows", may_stop)
    why = "the validation rows are too long for it" if rows else "no validation rows were given"
    general = [{"role": "user", "content": GENERAL}]
    return Asked([general], f"a general question, for {why}; golden_prompts takes your own")
