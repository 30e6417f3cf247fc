"""What a card has recorded in an artifact's metadata, read back from any backend."""

from collections.abc import Mapping
from typing import Any

from llm_finetune.components.shared.errors import UserError

NAME = "display_name"
STORE = "store_session_info"


def recorded(artifact: Any, with_store: bool = False) -> dict[str, Any]:
    """Returns an artifact's metadata as the card that made it wrote it.

    KFP's local runner hands metadata on as it is. The metadata store of a Kubeflow Pipelines backend changes what lies
    at the top level, and nothing below it::

        written                     read back
        {"dropped": {"short": 3}}   {"dropped": {"struct": {"short": 3}}}
        {"columns": ["a", "b"]}     {"columns": {"list": ["a", "b"]}}
        {"packing": true}           {"packing": 1}
        {"epochs": 2.0}             {"epochs": 2}

    Mappings and lists are unwrapped here. Whether a number was a boolean can't be told from it: `flag` reads those. The
    launcher fails on `None` and on numbers that are not finite, so no card writes them: a value that is not known is an
    empty text or left out.

    The store wraps all mappings and lists of an artifact or none. So they count as wrapped only if every one of them
    is; a mapping of a card whose one key is named `struct` stays as it is, since `inputs` and `origin` are beside it.

    Args:
        artifact: Anything with a `metadata` mapping.
        with_store: Keep how the launcher reached the artifact's store, which names the store's address and secret.

    Returns:
        A new mapping, without the keys that the backend has added.
    """
    added = {NAME} if with_store else {NAME, STORE}
    metadata = {name: value for name, value in artifact.metadata.items() if name not in added}
    containers = [value for value in metadata.values() if isinstance(value, Mapping | list)]
    if not all(_wrapped(value) for value in containers):
        return metadata
    return {name: _content(value) if _wrapped(value) else value for name, value in metadata.items()}


def flag(artifact: Any, name: str) -> bool:
    """Returns a boolean of an artifact's metadata.

    Args:
        artifact: Anything with a `metadata` mapping.
        name: The value's name.

    Returns:
        The value; False where the artifact has none. So the weights of a base model that Load Base Model did not record
        are taken as they are (`load_in_4bit`) by every card: 4 bit is what somebody has to ask for.

    Raises:
        UserError: If the value is neither true nor false.
    """
    value = recorded(artifact).get(name, False)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise UserError(
        f"{name} = {value!r} in the metadata of {artifact.uri or 'an input artifact'} is neither true nor false. The "
        f'card or importer that made the artifact has to write "{name}": true or "{name}": false'
    )


def _wrapped(value: Any) -> bool:
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    return isinstance(value.get("struct"), Mapping) or isinstance(value.get("list"), list)


def _content(wrapped: Mapping[str, Any]) -> Any:
    (content,) = wrapped.values()
    return content
