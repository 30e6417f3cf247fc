"""Converts the URI of an artifact to a storageUri of KServe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.metadata import STORE

SUPPORTED = ("gs", "s3", "minio", "oci", "pvc", "hf")


@dataclass(frozen=True)
class Storage:
    """Storage of a model.

    Attributes:
        uri: The storageUri.
        endpoint: `host:port` of an S3-compatible store other than AWS; else empty.
        secret: Secret of the store in the namespace of the pipeline; empty if not in the metadata.
        secure: Whether the endpoint uses HTTPS.
    """

    uri: str
    endpoint: str = ""
    secret: str = ""
    secure: bool = True


def storage_of(uri: str, metadata: Mapping[str, object] | None = None, endpoint: str = "") -> Storage:
    """Converts the URI of an artifact to a storageUri.

    Args:
        uri: URI of the artifact.
        metadata: Metadata of the artifact; for S3-compatible stores, the KFP launcher adds `store_session_info`.
        endpoint: `host:port` that takes precedence over the one in the metadata.

    Returns:
        The storage.

    Raises:
        UserError: If KServe does not support the URI.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SUPPORTED:
        kind = f"{parts.scheme}://" if parts.scheme else "a path of this machine"
        raise UserError(
            f"the URI of merged_model is {uri!r}: KServe cannot load from {kind}, only from "
            f"{', '.join(f'{scheme}://' for scheme in SUPPORTED)}. Set the pipeline root, or Merge & Export's "
            "`export_uri` and this card's `storage_uri`, to an object store, or use target = local"
        )
    path = parts.path.strip("/")
    if not parts.netloc or (parts.scheme in ("gs", "s3", "minio", "oci") and not path):
        raise UserError(f"the URI of merged_model is {uri!r}, which has no path in the {parts.scheme} store")
    if parts.scheme == "hf":
        return Storage(_hub(uri, parts.netloc, path))
    if parts.scheme in ("oci", "pvc"):
        return Storage(uri)
    if parts.scheme == "gs":
        return Storage(f"gs://{parts.netloc}/{path}")
    session = _session(metadata or {})
    # The initializer copies all keys with this prefix; the slash excludes siblings such as model-2/.
    return Storage(
        uri=f"s3://{parts.netloc}/{path}/",
        endpoint=endpoint or session.get("endpoint", ""),
        secret=session.get("secretName", ""),
        secure=str(session.get("disableSSL", "false")).lower() != "true",
    )


def _hub(uri: str, owner: str, path: str) -> str:
    model, _, revision = path.partition(":")
    if not model or "/" in model:
        raise UserError(
            f"the URI of merged_model is {uri!r}; KServe needs hf://owner/model or hf://owner/model:revision"
        )
    return f"hf://{owner}/{model}" + (f":{revision}" if revision else "")


def _session(metadata: Mapping[str, object]) -> dict[str, str]:
    """Returns the connection parameters of the store that the KFP launcher has recorded."""
    found = metadata.get(STORE) or {}
    try:
        session = json.loads(found) if isinstance(found, str) else cast("Mapping[str, Any]", found)
    except ValueError:
        raise UserError(f"merged_model's store_session_info is not JSON: {found!r}") from None
    # The launcher writes {"Provider": ..., "Params": {"endpoint": ..., "secretName": ...}}.
    parameters = session.get("Params") or session.get("params") or {}
    return dict(parameters)
