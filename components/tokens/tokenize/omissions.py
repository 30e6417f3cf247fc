"""What a chat template leaves out of a conversation: looked for by rendering made-up words in its place."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.rows.conversations import REASONING
from llm_finetune.components.tokens.tokenize.conversation import Conversation, RenderedRow
from llm_finetune.components.tokens.tokenize.marks import OFFERED, Marker, Piece
from llm_finetune.components.tokens.tokenize.shapes import without_repeats

PLACES_SHOWN = 3


class Omissions:
    """Finds what a tokenizer's chat template leaves out."""

    def __init__(self, tokenizer: Any, every_answer: bool) -> None:
        """Takes what decides the text.

        Args:
            tokenizer: A tokenizer with a chat template.
            every_answer: Whether earlier answers are trained too.
        """
        self.tokenizer, self.every_answer = tokenizer, every_answer
        self._known: dict[Any, list[Piece]] = {}

    def of(self, conversation: Conversation, row: RenderedRow) -> list[Piece]:
        """Returns the pieces of a conversation that its text lacks.

        A conversation of the same form, without repetitions, is rendered once, with a made-up word for every value.
        What a template does for what a text holds (it may cut reasoning off) shows in the row's own text.

        Args:
            conversation: A row.
            row: The row as it was rendered.
        """
        kept, form = without_repeats(conversation)
        if form not in self._known:
            short = Conversation([conversation.turns[i] for i in kept], conversation.tools)
            self._known[form] = self._missing(*Marker(every_word=False).marked(short))
        if lost := self._known[form]:
            return [piece if piece.turn == OFFERED else piece._replace(turn=kept[piece.turn]) for piece in lost]
        changed = _changed(conversation, row)
        if not changed:
            return []
        return [
            piece for piece in self._missing(*Marker(every_word=True).marked(conversation)) if piece.turn in changed
        ]

    def _missing(self, marked: Conversation, pieces: list[Piece]) -> list[Piece]:
        """Returns the pieces that the text of a marked conversation lacks.

        Where a template does not take the made-up words, nothing is told: the row itself has been rendered.
        """
        missing: list[Piece] = []
        with contextlib.suppress(UserError):
            missing += self._unread(marked, pieces)
        for i, turn in enumerate(marked.turns):
            if turn["role"] == "assistant":
                with contextlib.suppress(UserError):
                    missing += self._unsaid(marked, i, [piece for piece in pieces if piece.turn == i])
        return missing

    def _unread(self, marked: Conversation, pieces: list[Piece]) -> list[Piece]:
        """Returns what the model is not shown: of tools at the first answer, of messages in the whole text."""
        turns = marked.turns
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
        offered, whole = marked.text(self.tokenizer, first, True), marked.text(self.tokenizer)
        missing, cursor = [], 0
        for piece in pieces:
            if piece.turn == OFFERED or turns[piece.turn]["role"] == "system":  # may stand anywhere
                if _end_of(piece.words, offered if piece.turn == OFFERED else whole, 0) < 0:
                    missing.append(piece)
            elif turns[piece.turn]["role"] != "assistant":
                end = _end_of(piece.words, whole, cursor)
                cursor = max(end, cursor)
                if end < 0:
                    moved = _end_of(piece.words, whole, 0) > 0
                    missing.append(piece._replace(feature="the order of messages") if moved else piece)
        return missing

    def _unsaid(self, marked: Conversation, i: int, pieces: list[Piece]) -> list[Piece]:
        """Returns what an answer lacks at the time when it is written; templates may drop some of it later."""
        before, after = marked.text(self.tokenizer, i, True), marked.text(self.tokenizer, i + 1)
        answer = after[len(before) :] if after.startswith(before) else after
        is_trained = self.every_answer or i == len(marked.turns) - 1
        missing, cursor = [], 0
        for piece in pieces:
            if piece.place in REASONING and not is_trained:
                continue
            end = _end_of(piece.words, answer, cursor if piece.is_name else 0)
            if end < 0:
                missing.append(piece)
            elif piece.is_name:  # another call may have the same one
                cursor = end
        return missing


def _changed(conversation: Conversation, row: RenderedRow) -> set[int]:
    """Returns the messages whose content does not stand in the row's text as it is; of answers, the trained ones."""
    whole, last = row.prompt + row.completion, len(conversation.turns) - 1
    changed = set()
    for i, turn in enumerate(conversation.turns):
        rendered = whole
        if i == last:
            rendered = row.completion
        elif i in row.trained:
            rendered = row.prompt[slice(*row.trained[i])]
        elif turn["role"] == "assistant":
            continue
        if not _stands_in(turn["content"].strip(), rendered):
            changed.add(i)
    return changed


def _stands_in(text: str, rendered: str) -> bool:
    """Tells whether a text is there as it is, escaped as in JSON, or with other white space."""
    return (
        text in rendered
        or json.dumps(text, ensure_ascii=False)[1:-1] in rendered
        or "".join(text.split()) in "".join(rendered.split())
    )


def _end_of(words: Sequence[str], text: str, cursor: int) -> int:
    """Returns where the last of some words ends that follow each other in a text; -1 where one is not there."""
    for word in words:
        place = text.find(word, cursor)
        if place < 0:
            return -1
        cursor = place + len(word)
    return cursor


class Tally:
    """Counts the rows that lose something, by what they lose."""

    def __init__(self) -> None:
        """Begins at zero."""
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, tuple[int, list[str]]] = {}

    def add(self, row: int, lost: Iterable[Piece]) -> None:
        """Counts a row.

        Args:
            row: Its number.
            lost: What it loses.
        """
        self.rows += 1
        places: dict[str, list[str]] = {}
        for piece in lost:
            place = piece.place if piece.turn == OFFERED else f"messages[{piece.turn}].{piece.place}"
            places.setdefault(piece.feature, []).append(place)
        for feature, found in places.items():
            self.counts[feature] += 1
            self.first.setdefault(feature, (row, found))

    def told(self, model: str, split: str) -> str:
        """Returns what is lost, in which rows, and the ways out.

        Args:
            model: Name of the base model.
            split: Name of the split.
        """
        lines = []
        for feature, count in self.counts.items():
            row, places = self.first[feature]
            more = f" and {len(places) - PLACES_SHOWN} more" if len(places) > PLACES_SHOWN else ""
            shown = ", ".join(places[:PLACES_SHOWN]) + more
            lines.append(f"- {feature}: in {count:,} of {self.rows:,} rows, first in row {row}: {shown}")
        return (
            f"the chat template of {model!r} drops what rows of the {split} split hold, so the model would be trained "
            "without it:\n"
            + "\n".join(lines)
            + "\nTake a base model whose chat template renders it, put such a template "
            "into the base model's folder (chat_template.jinja), or remove from the data what is dropped, or its rows"
        )
