"""Finds what a chat template omits from a conversation, by rendering placeholders in place of its values."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.conversations import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation, RenderedRow
from llm_finetune.components.tokens.tokenize.placeholders import TOOL_DEFINITIONS, MarkedValue, PlaceholderWriter
from llm_finetune.components.tokens.tokenize.shapes import Shape, distinct_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_PLACES_SHOWN = 3


class OmissionFinder:
    """Finds the values that a tokenizer's chat template omits."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", every_answer: bool) -> None:
        """Creates a finder.

        Args:
            tokenizer: A tokenizer with a chat template.
            every_answer: Whether earlier answers are trained too.
        """
        self.tokenizer, self.every_answer = tokenizer, every_answer
        self._by_shape: dict[Shape, list[MarkedValue]] = {}

    def find(self, conversation: Conversation, row: RenderedRow) -> list[MarkedValue]:
        """Returns the values of a conversation that are missing in its rendered text.

        Each shape of conversation, without repetitions, is rendered once with placeholders. What a template does
        depending on the content of a text (for example removing reasoning) is seen in the text of the row itself.

        Args:
            conversation: A row.
            row: The rendered row.
        """
        kept, shape = distinct_messages(conversation)
        if shape not in self._by_shape:
            short = Conversation([conversation.turns[i] for i in kept], conversation.tools)
            self._by_shape[shape] = self._missing(*PlaceholderWriter(every_word=False).write(short))
        if missing := self._by_shape[shape]:
            return [v if v.turn == TOOL_DEFINITIONS else v._replace(turn=kept[v.turn]) for v in missing]
        altered = _altered_messages(conversation, row)
        if not altered:
            return []
        missing = self._missing(*PlaceholderWriter(every_word=True).write(conversation))
        return [value for value in missing if value.turn in altered]

    def _missing(self, marked: Conversation, values: list[MarkedValue]) -> list[MarkedValue]:
        """Returns the values that are missing in the rendered text of a conversation with placeholders.

        If the template refuses the placeholders, nothing is returned: the row itself has been rendered without error.
        """
        missing: list[MarkedValue] = []
        with contextlib.suppress(UserError):
            missing += self._missing_from_context(marked, values)
        for i, turn in enumerate(marked.turns):
            if turn["role"] == "assistant":
                with contextlib.suppress(UserError):
                    missing += self._missing_from_answer(marked, i, [value for value in values if value.turn == i])
        return missing

    def _missing_from_context(self, marked: Conversation, values: list[MarkedValue]) -> list[MarkedValue]:
        """Returns the values that the model does not read: of tools at the first answer, of messages in the text."""
        turns = marked.turns
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
        first_prompt, whole = marked.render(self.tokenizer, first, True), marked.render(self.tokenizer)
        missing, cursor = [], 0
        for value in values:
            if value.turn == TOOL_DEFINITIONS or turns[value.turn]["role"] == "system":  # may be at any place
                if _find_end(value.words, first_prompt if value.turn == TOOL_DEFINITIONS else whole, 0) < 0:
                    missing.append(value)
            elif turns[value.turn]["role"] != "assistant":
                end = _find_end(value.words, whole, cursor)
                cursor = max(end, cursor)
                if end < 0:
                    moved = _find_end(value.words, whole, 0) > 0
                    missing.append(value._replace(feature="the order of messages") if moved else value)
        return missing

    def _missing_from_answer(self, marked: Conversation, i: int, values: list[MarkedValue]) -> list[MarkedValue]:
        """Returns what is missing in an answer when it is generated; templates may remove some of it in later turns."""
        before, after = marked.render(self.tokenizer, i, True), marked.render(self.tokenizer, i + 1)
        answer = after[len(before) :] if after.startswith(before) else after
        is_trained = self.every_answer or i == len(marked.turns) - 1
        missing, cursor = [], 0
        for value in values:
            if value.place in REASONING and not is_trained:
                continue
            end = _find_end(value.words, answer, cursor if value.is_name else 0)
            if end < 0:
                missing.append(value)
            elif value.is_name:  # another call may have the same name
                cursor = end
        return missing


def _altered_messages(conversation: Conversation, row: RenderedRow) -> set[int]:
    """Returns the indices of messages whose content is not in the row's text; of answers, the trained ones only."""
    whole, last = row.prompt + row.completion, len(conversation.turns) - 1
    altered = set()
    for i, turn in enumerate(conversation.turns):
        rendered = whole
        if i == last:
            rendered = row.completion
        elif i in row.trained:
            rendered = row.prompt[slice(*row.trained[i])]
        elif turn["role"] == "assistant":
            continue
        if not _contains(rendered, turn["content"].strip()):
            altered.add(i)
    return altered


def _contains(rendered: str, text: str) -> bool:
    """Returns whether a text is part of the rendered text: as it is, escaped as in JSON, or with other white space."""
    return (
        text in rendered
        or json.dumps(text, ensure_ascii=False)[1:-1] in rendered
        or "".join(text.split()) in "".join(rendered.split())
    )


def _find_end(words: Sequence[str], text: str, cursor: int) -> int:
    """Returns the end of the last of some words that follow each other in a text; -1 if one is missing."""
    for word in words:
        place = text.find(word, cursor)
        if place < 0:
            return -1
        cursor = place + len(word)
    return cursor


class OmissionCounts:
    """Counts rows with omitted values, by feature."""

    def __init__(self) -> None:
        """Creates empty counts."""
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, tuple[int, list[str]]] = {}

    def add(self, row: int, missing: Iterable[MarkedValue]) -> None:
        """Counts a row.

        Args:
            row: Number of the row.
            missing: Its omitted values.
        """
        self.rows += 1
        places: dict[str, list[str]] = {}
        for value in missing:
            place = value.place if value.turn == TOOL_DEFINITIONS else f"messages[{value.turn}].{value.place}"
            places.setdefault(value.feature, []).append(place)
        for feature, found in places.items():
            self.counts[feature] += 1
            self.first.setdefault(feature, (row, found))

    def message(self, model: str, split: str) -> str:
        """Returns an error message: what is omitted, in which rows, and how to avoid it.

        Args:
            model: Name of the base model.
            split: Name of the split.
        """
        lines = []
        for feature, count in self.counts.items():
            row, places = self.first[feature]
            more = f" and {len(places) - MAX_PLACES_SHOWN} more" if len(places) > MAX_PLACES_SHOWN else ""
            shown = ", ".join(places[:MAX_PLACES_SHOWN]) + more
            lines.append(f"- {feature}: in {count:,} of {self.rows:,} rows, first in row {row}: {shown}")
        return (
            f"the chat template of {model!r} drops content of rows of the {split} split, so the model would be trained "
            "without it:\n"
            + "\n".join(lines)
            + "\nUse a base model whose chat template renders it, put such a template into the base model's folder "
            "(chat_template.jinja), or remove this content or these rows from the data"
        )
