"""Client of the Kubernetes API for one namespace, with retries and readable errors."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client, dynamic, watch
from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError

from llm_finetune.components.serving.vllm_serve.kserve.manifests import Manifest
from llm_finetune.components.shared import kubernetes_api
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.kubernetes_api import ApiError

__all__ = ["MANAGER", "ApiError", "Cluster", "Manifest"]

MANAGER = "llm-finetune"
TIMEOUT = 30.0

Result = TypeVar("Result")


class Cluster:
    """A namespace of a Kubernetes cluster."""

    def __init__(self, namespace: str = "", retry_delay: float = 0.5) -> None:
        """Connects with the service account of the pod or, outside a cluster, with the kubeconfig.

        Args:
            namespace: The namespace; empty for the namespace of the pod or of the kubeconfig's context.
            retry_delay: Seconds before the first retry of a request; doubled for each retry up to a factor of 16, for
                at most 12 retries.

        Raises:
            UserError: If there is neither a service account nor a kubeconfig, or the API is unreachable.
        """
        self._client, own = kubernetes_api.connect(retry_delay)
        self.namespace, self.retry_delay = namespace or own, retry_delay
        # The default cache, in /tmp by host name, may hold the resources of an older KServe.
        cache = Path(tempfile.mkdtemp(prefix="discovery-")) / "cache.json"
        self._dynamic = self._call(
            "discovering API resources", lambda: dynamic.DynamicClient(self._client, cache_file=str(cache))
        )
        self._core, self._access = client.CoreV1Api(self._client), client.AuthorizationV1Api(self._client)

    def get(self, api_version: str, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """Returns an object, or None if it does not exist."""
        resource, where = self._resource(api_version, kind), namespace or self.namespace
        read = lambda: resource.get(name=name, namespace=where, _request_timeout=TIMEOUT)  # noqa: E731
        with contextlib.suppress(NotFoundError):
            return dict(self._call(f"reading {kind} {name}", read).to_dict())
        return None

    def list(self, api_version: str, kind: str, labels: str = "", fields: str = "") -> list[Manifest]:
        """Returns the objects in the namespace (of a cluster-scoped kind: all) that match the selectors."""
        resource, selectors = self._resource(api_version, kind), {"label_selector": labels, "field_selector": fields}
        given = {name: value for name, value in selectors.items() if value}
        read = lambda: resource.get(namespace=self.namespace, _request_timeout=TIMEOUT, **given)  # noqa: E731
        return list(self._call(f"listing {resource.name}", read).to_dict().get("items", []))

    def serves(self, api_version: str, kind: str) -> bool:
        """Returns whether the API serves a kind."""
        try:
            self._call("discovering API resources", lambda: self._discovered(api_version, kind))
        except (ResourceNotFoundError, NotFoundError):
            return False
        return True

    def api_groups(self) -> set[str]:
        """Returns the names of the API groups."""
        return set(self._call("discovering API resources", lambda: self._dynamic.resources.api_groups))

    def schema(self, group: str, version: str, kind: str) -> Manifest:
        """Returns the published OpenAPI schema of a kind, which every authenticated user can read; empty if unknown.

        Raises:
            ApiError: If the API publishes no document for the group.
        """
        path = f"/openapi/v3/apis/{group}/{version}"
        document = self._call(
            f"reading {path}",
            lambda: self._client.call_api(
                path, "GET", header_params={"Accept": "application/json"}, response_type="object",
                auth_settings=["BearerToken"], _return_http_data_only=True, _request_timeout=TIMEOUT,
            ),
        )  # fmt: skip
        wanted = {"group": group, "version": version, "kind": kind}
        for schema in document.get("components", {}).get("schemas", {}).values():
            if wanted in schema.get("x-kubernetes-group-version-kind", []):
                return dict(schema)
        return {}

    def is_allowed(self, verb: str, group: str, resource: str, subresource: str = "", namespaced: bool = True) -> bool:
        """Returns whether this identity has a permission (SelfSubjectAccessReview)."""
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        attributes |= {"namespace": self.namespace} if namespaced else {}
        body = {"spec": {"resourceAttributes": attributes}}
        review = self._call(
            "checking permissions",
            lambda: self._access.create_self_subject_access_review(body, _request_timeout=TIMEOUT),
        )
        return bool(review.status.allowed)

    def apply(self, manifest: Manifest, dry_run: bool = False) -> Manifest:
        """Applies an object with server-side apply, without taking over fields of other managers.

        Args:
            manifest: The fields to own; with `metadata.resourceVersion`, a changed object is a conflict.
            dry_run: Whether the API and its webhooks only validate the manifest.

        Raises:
            UserError: If another manager owns a field of the manifest, or the API rejects the object.
        """
        resource = self._resource(manifest["apiVersion"], manifest["kind"])
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        options = {"dry_run": "All"} if dry_run else {}
        try:
            applied = self._call(
                f"{kind} {self.namespace}/{name}",
                lambda: self._dynamic.server_side_apply(
                    resource, body=manifest, name=name, namespace=self.namespace, field_manager=MANAGER,
                    _request_timeout=TIMEOUT, **options,
                ),
            )  # fmt: skip
        except ApiError as error:
            if not error.conflicts:
                raise
            fields = "; ".join(f"{owner!r} owns {field}" for field, owner in error.conflicts)
            raise UserError(
                f"{kind} {self.namespace}/{name}: another manager owns fields that this card sets: {fields}. Let only "
                "one of them manage these (Argo CD: ignoreDifferences on spec), or use another `deployment_name`"
            ) from None
        return dict(applied.to_dict())

    def apply_if_unchanged(self, manifest: Manifest, seen: Manifest | None) -> Manifest:
        """Applies a manifest unless the spec of the object has changed since it was read.

        Args:
            manifest: The fields to own.
            seen: The object as read before; None if it did not exist.

        Raises:
            UserError: If the spec has changed, or for any reason of `apply`.
        """
        name = manifest["metadata"]["name"]
        for _ in range(5):
            if seen is None:
                return self.apply(manifest)
            locked = manifest["metadata"] | {"resourceVersion": seen["metadata"]["resourceVersion"]}
            try:
                return self.apply(manifest | {"metadata": locked})
            except ApiError as error:
                if error.status != 409:
                    raise
            now = self.get(manifest["apiVersion"], manifest["kind"], name)
            if now is not None and "spec" in manifest and _contains(now["spec"], manifest["spec"]):
                return now  # Applied by an earlier attempt whose response was lost.
            if now is None or now["spec"] != seen["spec"]:
                break
            seen = now  # Only the status has changed.
        raise UserError(
            f"{manifest['kind']} {name} was changed by another client at the same time and not overwritten. Run the "
            "card again"
        )

    def delete(self, api_version: str, kind: str, name: str) -> None:
        """Deletes an object and its dependents, if it exists."""
        resource = self._resource(api_version, kind)
        delete = lambda: resource.delete(  # noqa: E731
            name=name, namespace=self.namespace, propagation_policy="Foreground", _request_timeout=TIMEOUT
        )
        with contextlib.suppress(NotFoundError):
            self._call(f"deleting {kind} {name}", delete)

    def wait_for_change(self, manifest: Manifest, seconds: float) -> None:
        """Waits until an object changes, or for the given time.

        The watch only shortens the wait: callers read the objects again. If it has expired (410), is interrupted or is
        forbidden, the full time is waited.
        """
        started, resource = time.monotonic(), self._resource(manifest["apiVersion"], manifest["kind"])
        if seconds < 1:  # The shortest watch of the API.
            time.sleep(seconds)
            return
        try:
            stream = watch.Watch().stream(
                resource.get,
                namespace=self.namespace,
                field_selector=f"metadata.name={manifest['metadata']['name']}",
                resource_version=manifest["metadata"].get("resourceVersion"),
                timeout_seconds=max(1, round(seconds)),
                serialize=False,
                _request_timeout=seconds + TIMEOUT,
            )
            for _ in stream:
                # Pods and Deployment change shortly after the InferenceService.
                seconds = min(seconds, time.monotonic() - started + self.retry_delay)
                break
        except (client.ApiException, urllib3.exceptions.HTTPError):
            pass
        time.sleep(max(0.0, started + seconds - time.monotonic()))

    def log(self, pod: str, container: str, lines: int = 20, previous: bool = False) -> str:
        """Returns the last lines of a container's log, or why it cannot be read."""
        try:
            return str(
                self._core.read_namespaced_pod_log(
                    pod, self.namespace, container=container, tail_lines=lines, previous=previous,
                    _request_timeout=TIMEOUT,
                )
            ).rstrip()  # fmt: skip
        except client.ApiException as error:
            return f"(no log: {error.status} {error.reason})"
        except urllib3.exceptions.HTTPError as error:
            return f"(no log: {error})"

    def _call(self, doing: str, call: Callable[[], Result]) -> Result:
        """Converts errors of API and network to a UserError, except for those about a missing object or kind."""
        try:
            return call()
        except (NotFoundError, ResourceNotFoundError):
            raise
        except client.ApiException as error:
            raise ApiError(doing, error) from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            # The discovery client raises ValueError for an unreachable http:// server.
            raise UserError(f"{doing}: the Kubernetes API is unreachable: {error}") from None

    def _discovered(self, api_version: str, kind: str) -> Any:
        # Without the prefix, the search for a core kind reads every API group with a v1.
        prefix = "apis" if "/" in api_version else "api"
        return self._dynamic.resources.get(prefix=prefix, api_version=api_version, kind=kind)

    def _resource(self, api_version: str, kind: str) -> Any:
        try:
            return self._call("discovering API resources", lambda: self._discovered(api_version, kind))
        except (ResourceNotFoundError, NotFoundError):
            raise UserError(
                f"the cluster has no {kind} of {api_version}. Install KServe (0.15 or newer), or use target = manifest"
            ) from None


def _contains(whole: object, part: object) -> bool:
    """Returns whether an object has all fields of a manifest, with the same values."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(name in whole and _contains(whole[name], value) for name, value in part.items())
    return bool(whole == part)
