"""Word-level diff of an answer against its reference."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

MIN_SIMILARITY = 0.3
"""Texts that are less similar than this are not marked: the marks would cover nearly all of the answer."""


@dataclass(frozen=True)
class Piece:
    """A part of the diff.

    Attributes:
        kind: `same` if both texts have it, `added` if only the answer has it, `missing` if only the reference has it.
        text: The text.
    """

    kind: Literal["same", "added", "missing"]
    text: str


def word_diff(reference: str, answer: str) -> list[Piece]:
    """Compares an answer with its reference word by word.

    Args:
        reference: Expected answer.
        answer: Answer of a model.

    Returns:
        The diff in the order of the answer; one piece of kind `same` if the texts are not similar.
    """
    expected, actual = _words(reference.strip()), _words(answer.strip())
    matcher = SequenceMatcher(None, expected, actual, autojunk=False)
    if matcher.ratio() < MIN_SIMILARITY:
        return [Piece("same", answer.strip())]
    pieces = []
    for tag, first, last, start, end in matcher.get_opcodes():
        if tag in ("replace", "delete"):
            pieces.append(Piece("missing", "".join(expected[first:last])))
        if tag in ("replace", "insert"):
            pieces.append(Piece("added", "".join(actual[start:end])))
        if tag == "equal":
            pieces.append(Piece("same", "".join(actual[start:end])))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)
