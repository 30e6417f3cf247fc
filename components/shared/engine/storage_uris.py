"""Translates an artifact's URI into the storageUri that KServe's storage initializer understands."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.metadata import STORE

SUPPORTED = ("gs", "s3", "minio", "oci", "pvc", "hf")


@dataclass(frozen=True)
class Storage:
    """Where KServe finds the model.

    Attributes:
        uri: The storageUri.
        endpoint: `host:port` of an S3-compatible store that is not AWS, else empty.
        secret: Name of the store's secret in the pipeline's namespace where the artifact says so, else empty.
        secure: Whether the endpoint speaks https.
    """

    uri: str
    endpoint: str = ""
    secret: str = ""
    secure: bool = True


def storage_of(uri: str, metadata: Mapping[str, Any] | None = None, endpoint: str = "") -> Storage:
    """Maps an artifact URI to a storageUri.

    Args:
        uri: The artifact's URI.
        metadata: The artifact's metadata; KFP's launcher puts `store_session_info` there for S3-compatible stores.
        endpoint: `host:port` that takes precedence over the artifact's own.

    Returns:
        The storage.

    Raises:
        UserError: If KServe cannot load from such a URI.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SUPPORTED:
        kind = f"{parts.scheme}://" if parts.scheme else "a path of this machine"
        raise UserError(
            f"merged_model lies at {uri!r}: KServe cannot load from {kind}, only from "
            f"{', '.join(f'{scheme}://' for scheme in SUPPORTED)}. Set the pipeline root, or Merge & Export's "
            "`export_uri` and this card's `storage_uri`, to an object store, or use target = local"
        )
    path = parts.path.strip("/")
    if not parts.netloc or (parts.scheme in ("gs", "s3", "minio", "oci") and not path):
        raise UserError(f"merged_model lies at {uri!r}, which names no folder in a {parts.scheme} store")
    if parts.scheme == "hf":
        return Storage(_hub(uri, parts.netloc, path))
    if parts.scheme in ("oci", "pvc"):
        return Storage(uri)
    if parts.scheme == "gs":
        return Storage(f"gs://{parts.netloc}/{path}")
    session = _session(metadata or {})
    # With the slash, because the initializer copies every key that starts with the path: model/ is not model-2/.
    return Storage(
        uri=f"s3://{parts.netloc}/{path}/",
        endpoint=endpoint or session.get("endpoint", ""),
        secret=session.get("secretName", ""),
        secure=str(session.get("disableSSL", "false")).lower() != "true",
    )


def _hub(uri: str, owner: str, path: str) -> str:
    model, _, revision = path.partition(":")
    if not model or "/" in model:
        raise UserError(f"merged_model lies at {uri!r}; KServe wants hf://owner/model or hf://owner/model:revision")
    return f"hf://{owner}/{model}" + (f":{revision}" if revision else "")


def _session(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the launcher's record of how it reached the artifact's store."""
    found = metadata.get(STORE) or {}
    try:
        session = json.loads(found) if isinstance(found, str) else dict(found)
    except ValueError:
        raise UserError(f"merged_model's store_session_info is not JSON: {found!r}") from None
    # The launcher writes {"Provider": ..., "Params": {"endpoint": ..., "secretName": ...}}.
    parameters = session.get("Params") or session.get("params") or {}
    return dict(parameters)
