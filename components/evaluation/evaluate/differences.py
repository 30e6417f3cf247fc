"""Which words of an answer are not those of the reference."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

SAME, ADDED, MISSING = "same", "added", "missing"
LEAST_IN_COMMON = 0.3
"""Below this similarity marks would cover everything and show nothing."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        kind: `same` as in the reference, `added` by the answer, or `missing` from it.
        text: The text.
    """

    kind: str
    text: str


def differences(reference: str, answer: str) -> list[Piece]:
    """Compares an answer with its reference word by word.

    Args:
        reference: What was wanted.
        answer: What was given.

    Returns:
        The answer with what is missing in between; one unmarked piece if the two have little in common.
    """
    wanted, given = _words(reference.strip()), _words(answer.strip())
    matcher = SequenceMatcher(None, wanted, given, autojunk=False)
    if matcher.ratio() < LEAST_IN_COMMON:
        return [Piece(SAME, answer.strip())]
    pieces = []
    for tag, first, last, start, end in matcher.get_opcodes():
        if tag in ("replace", "delete"):
            pieces.append(Piece(MISSING, "".join(wanted[first:last])))
        if tag in ("replace", "insert"):
            pieces.append(Piece(ADDED, "".join(given[start:end])))
        if tag == "equal":
            pieces.append(Piece(SAME, "".join(given[start:end])))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)
