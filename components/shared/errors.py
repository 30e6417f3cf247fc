"""The one error type for mistakes that the person who started a run can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where, and what to do.

    A card that raises it ends with the message alone, without a traceback (see `card.card`).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as `; did you mean 'output'?` for a misspelt name.

    Args:
        name: What the user wrote.
        known: The names that exist.

    Returns:
        The hint, or an empty string when nothing is close.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException, characters: int = 400) -> str:
    """Returns an error's message as one line of at most so many characters, for libraries that use several lines."""
    return " ".join(str(error).split())[:characters] or type(error).__name__
