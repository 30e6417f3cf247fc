"""The error type for mistakes of the user, and helpers for its messages."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An input, setting or environment is wrong and the user can fix it; the message says what, where and how.

    A card that raises it ends with the message and without a traceback (see `card.card`).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as `; did you mean 'output'?` for a misspelt name.

    Args:
        name: Name that the user wrote.
        known: Valid names.

    Returns:
        The hint, or an empty string if no name is similar.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error message that is not empty, or else the type of the error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException, characters: int = 400) -> str:
    """Returns an error's message as one line of at most so many characters, for libraries that use several lines."""
    return " ".join(str(error).split())[:characters] or type(error).__name__
