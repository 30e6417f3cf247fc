"""URLs as they may be shown: in messages, in reports, on a model card."""

import re
from collections.abc import Mapping
from typing import Any

# In other schemes than the web's a question mark is a pattern for one character, not the beginning of a signature.
USER = re.compile(r"(?<=://)[^/?#,\s]*@")
SIGNATURE = re.compile(r"(\bhttps?://[^?#,\n]*)[?#][^,\n]*")


def without_secrets(text: str) -> str:
    """Returns a text whose URLs have neither user nor password nor, on the web, a query, which may be a signature.

    Args:
        text: A URL, several with commas or line ends between them, or anything else, which stays as it is.
    """
    return SIGNATURE.sub(r"\1", USER.sub("", text))


def all_without_secrets(value: Any) -> Any:
    """Returns settings, however they are nested, with every text in them as `without_secrets` gives it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {name: all_without_secrets(inner) for name, inner in value.items()}
    return [all_without_secrets(inner) for inner in value] if isinstance(value, list) else value
