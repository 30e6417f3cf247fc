"""Reads artifact metadata as it was written, whatever the backend did to it."""

from collections.abc import Mapping
from typing import Any, Protocol

from llm_finetune.components.shared.errors import UserError

NAME = "display_name"
STORE = "store_session_info"


class HasMetadata(Protocol):
    """An artifact of KFP, as far as its metadata goes."""

    uri: str
    metadata: dict[str, Any]


def read_metadata(artifact: HasMetadata, with_store: bool = False) -> dict[str, Any]:
    """Returns an artifact's metadata in the form in which the producing card wrote it.

    KFP's local runner passes metadata on unchanged. The metadata store of a Kubeflow Pipelines backend changes values
    at the top level only::

        written                     read back
        {"dropped": {"short": 3}}   {"dropped": {"struct": {"short": 3}}}
        {"columns": ["a", "b"]}     {"columns": {"list": ["a", "b"]}}
        {"packing": true}           {"packing": 1}
        {"epochs": 2.0}             {"epochs": 2}

    This function unwraps mappings and lists. A stored number may have been a boolean: read those with `read_flag`. The
    launcher fails on `None` and on numbers that are not finite, so cards write an unknown value as an empty string or
    leave it out.

    The store wraps either all mappings and lists of an artifact or none of them. They are therefore unwrapped only if
    every one of them is wrapped. A mapping whose only key is `struct` stays as it is, because `inputs` and `origin` of
    the same artifact are not wrapped.

    Args:
        artifact: A KFP artifact.
        with_store: Keep the launcher's session info of the artifact store (address and secret of the store).

    Returns:
        A new mapping, without the keys that the backend adds.
    """
    added_keys = {NAME} if with_store else {NAME, STORE}
    metadata = {name: value for name, value in artifact.metadata.items() if name not in added_keys}
    containers = [value for value in metadata.values() if isinstance(value, Mapping | list)]
    if not all(_is_wrapped(value) for value in containers):
        return metadata
    return {name: _unwrap(value) if _is_wrapped(value) else value for name, value in metadata.items()}


def read_flag(artifact: HasMetadata, name: str) -> bool:
    """Returns a boolean of an artifact's metadata.

    Args:
        artifact: A KFP artifact.
        name: Key in the metadata.

    Returns:
        The value; False if the key is missing. For `load_in_4bit` this means: a base model that was not loaded by Load
        Base Model is used in its stored precision, 4 bit must be requested.

    Raises:
        UserError: If the value is not a boolean.
    """
    value = read_metadata(artifact).get(name, False)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise UserError(
        f"{name} = {value!r} in the metadata of {artifact.uri or 'an input artifact'} is not a boolean. The card or "
        f'importer that produces the artifact must write "{name}": true or "{name}": false'
    )


def _is_wrapped(value: object) -> bool:
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    return isinstance(value.get("struct"), Mapping) or isinstance(value.get("list"), list)


def _unwrap(wrapped: Mapping[str, Any]) -> Any:
    (content,) = wrapped.values()
    return content
