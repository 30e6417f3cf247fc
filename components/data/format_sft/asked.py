"""The rows of a split that the served model is asked first."""

from collections.abc import Iterable, Sequence

from llm_finetune.components.shared.questions import Messages, Question

ROWS_READ = 1000
COUNT = 2
SHORT, SHORT_ANSWER = 600, 120
LONGEST = 16_000


def chosen(requests: Iterable[Messages], answers: Sequence[str]) -> list[Question]:
    """Takes the first two rows that are short, or the shortest: an answer must not take long, nor the model's context.

    Args:
        requests: A request per row; an empty one for a row that no plain chat request can ask.
        answers: The rows' answers.

    Returns:
        At most two, none of them longer than 16,000 bytes and no two the same.
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
