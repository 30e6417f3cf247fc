"""Selects rows of a split as sample questions for the deployed model."""

from collections.abc import Iterable, Sequence

from llm_finetune.components.shared.questions import Messages, Question

ROWS_READ = 1000
COUNT = 2
SHORT, SHORT_ANSWER = 600, 120
LONGEST = 16_000


def select_questions(requests: Iterable[Messages], answers: Sequence[str]) -> list[Question]:
    """Selects the first two short rows, or the shortest, so that requests are fast and fit the model's context.

    Args:
        requests: A request per row; empty for rows that cannot be sent as a plain chat request.
        answers: Answer of each row.

    Returns:
        At most two different questions of at most 16,000 bytes.
    """
    usable: list[Question] = []
    for messages, answer in zip(requests, answers, strict=True):
        question = Question(messages, answer)
        if messages and messages[-1]["content"].strip() and question.size <= LONGEST:
            usable.append(question)
    usable.sort(key=lambda question: max(question.size, SHORT) + max(len(question.reference), SHORT_ANSWER))
    different: dict[str, Question] = {}
    for question in usable:
        different.setdefault(str(question.messages), question)
    return list(different.values())[:COUNT]
