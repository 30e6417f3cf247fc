"""Removes credentials from URLs before they are shown or published."""

import re
from collections.abc import Mapping
from typing import Any

# Only for http(s): in other schemes a question mark is a glob pattern and does not start a query.
CREDENTIALS = re.compile(r"(?<=://)[^/?#,\s]*@")
QUERY = re.compile(r"(\bhttps?://[^?#,\n]*)[?#][^,\n]*")


def without_secrets(text: str) -> str:
    """Removes user, password and, from http(s) URLs, the query, which may contain a signature.

    Args:
        text: One URL, or several separated by commas or newlines; other text is returned unchanged.
    """
    return QUERY.sub(r"\1", CREDENTIALS.sub("", text))


def all_without_secrets(value: Any) -> Any:
    """Applies `without_secrets` to every string in nested mappings and lists."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {name: all_without_secrets(inner) for name, inner in value.items()}
    return [all_without_secrets(inner) for inner in value] if isinstance(value, list) else value
