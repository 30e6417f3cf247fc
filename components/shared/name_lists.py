"""Settings that hold names: text with commas in the KFP interface, and also a list in a recipe."""

from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema


def _join(value: object) -> object:
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return ",".join(value)
    return value


NameList = Annotated[
    str,
    BeforeValidator(_join),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""Names separated by commas; a list of names is accepted as well and joined with commas."""
