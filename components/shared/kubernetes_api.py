"""Connects to the Kubernetes API and converts its errors to readable messages."""

import contextlib
import json
import logging
from pathlib import Path

import urllib3
from kubernetes import client, config

from llm_finetune.components.shared.errors import UserError

POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ApiError(UserError):
    """The Kubernetes API rejected a request.

    Attributes:
        status: HTTP status.
        conflicts: Field and field manager of each conflict of a server-side apply.
    """

    def __init__(self, doing: str, error: client.ApiException) -> None:
        """Reads the Status object in the response."""
        self.status, self.conflicts = int(error.status or 0), list[tuple[str, str]]()
        message = str(error.reason)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            body = json.loads(error.body)
            message = str(body["message"])
            for cause in (body.get("details") or {}).get("causes") or []:
                if cause.get("reason") == "FieldManagerConflict":
                    owner = cause["message"].split('"')[1] if '"' in cause["message"] else cause["message"]
                    self.conflicts.append((cause.get("field", "?"), owner))
        super().__init__(f"{doing} was refused ({self.status}): {message}")


def connect(retry_delay: float) -> tuple[client.ApiClient, str]:
    """Connects with the service account of the pod or, outside a cluster, with the kubeconfig.

    Args:
        retry_delay: Seconds before the first retry of a request.

    Returns:
        The client, and the namespace of the pod or of the kubeconfig's context.

    Raises:
        UserError: If there is neither a service account nor a kubeconfig.
    """
    settings = client.Configuration()
    try:
        config.load_incluster_config(settings)
        own = _namespace_of_pod()
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=settings)
            # Not the pod's: files of a service account may be there without its variables, as in a shell over SSH.
            own = _namespace_of_context()
        except config.ConfigException as error:
            raise UserError(
                f"no Kubernetes cluster to deploy to: {error}. Run the card in a cluster, set KUBECONFIG, or use "
                "target = local or manifest"
            ) from None
    # All requests are idempotent: server-side apply, read, delete.
    settings.retries = urllib3.Retry(
        total=12,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,
        backoff_factor=retry_delay,
        backoff_max=16 * retry_delay,
        raise_on_status=False,
    )
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return client.ApiClient(settings), own


def _namespace_of_pod() -> str:
    return POD_NAMESPACE.read_text(encoding="utf-8").strip() if POD_NAMESPACE.is_file() else "default"


def _namespace_of_context() -> str:
    return str(config.list_kube_config_contexts()[1]["context"].get("namespace", "default"))
