"""The Kubernetes API as the card uses it: one connection, readable refusals, patience with a server that restarts."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes import client, dynamic, watch
from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError

from llm_finetune.components.shared import kubernetes_api
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.kubernetes_api import Refused

__all__ = ["MANAGER", "Cluster", "Manifest", "Refused"]

MANAGER = "llm-finetune"
TIMEOUT = 30.0

Manifest = dict[str, Any]
Result = TypeVar("Result")


class Cluster:
    """A namespace of a Kubernetes cluster."""

    def __init__(self, namespace: str = "", pause: float = 0.5) -> None:
        """Connects with the pod's service account, or with the kubeconfig outside a cluster.

        Args:
            namespace: The namespace; empty takes the pod's own, or that of the kubeconfig's context.
            pause: Seconds before the second try of a request that the API could not take; doubled each time, up to
                sixteen times as long, twelve tries.

        Raises:
            UserError: If there is neither a service account nor a kubeconfig, or the API does not answer.
        """
        self._client, own = kubernetes_api.connect(pause)
        self.namespace, self.pause = namespace or own, pause
        # A cache of its own: the default one, in /tmp by host name, would remember a KServe that has been upgraded.
        cache = Path(tempfile.mkdtemp(prefix="discovery-")) / "cache.json"
        self._dynamic = self._call(
            "looking at the API", lambda: dynamic.DynamicClient(self._client, cache_file=str(cache))
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
        """Returns the objects of the namespace (all of them, for a kind without namespaces) that fit the selectors."""
        resource, selectors = self._resource(api_version, kind), {"label_selector": labels, "field_selector": fields}
        chosen = {name: value for name, value in selectors.items() if value}
        read = lambda: resource.get(namespace=self.namespace, _request_timeout=TIMEOUT, **chosen)  # noqa: E731
        return list(self._call(f"listing {resource.name}", read).to_dict().get("items", []))

    def knows(self, api_version: str, kind: str) -> bool:
        """Tells whether the API serves a kind."""
        try:
            self._call("looking at the API", lambda: self._discovered(api_version, kind))
        except (ResourceNotFoundError, NotFoundError):
            return False
        return True

    def groups(self) -> set[str]:
        """Returns the names of the API's groups."""
        return set(self._call("looking at the API", lambda: self._dynamic.resources.api_groups))

    def schema(self, group: str, version: str, kind: str) -> Manifest:
        """Returns the OpenAPI schema that the API publishes of a kind; anybody who is logged in may read it.

        Raises:
            Refused: If it publishes none.
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

    def may(self, verb: str, group: str, resource: str, subresource: str = "", namespaced: bool = True) -> bool:
        """Asks the API whether this identity may do something."""
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        attributes |= {"namespace": self.namespace} if namespaced else {}
        body = {"spec": {"resourceAttributes": attributes}}
        review = self._call(
            "asking for our rights",
            lambda: self._access.create_self_subject_access_review(body, _request_timeout=TIMEOUT),
        )
        return bool(review.status.allowed)

    def apply(self, manifest: Manifest, dry_run: bool = False) -> Manifest:
        """Applies an object server-side as our field manager; fields that others own are never taken from them.

        Args:
            manifest: The fields to own; a `metadata.resourceVersion` makes it fail if the object has changed since.
            dry_run: Only let the API and its webhooks check it.

        Raises:
            UserError: If another manager owns a field that the manifest sets, or the API refuses the object.
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
        except Refused as refused:
            if not refused.conflicts:
                raise
            fields = "; ".join(f"{owner!r} owns {field}" for field, owner in refused.conflicts)
            told = UserError(
                f"{kind} {self.namespace}/{name}: another manager owns fields that this card sets: {fields}. Let one "
                "of the two manage them (Argo CD: ignoreDifferences on spec), or give another `deployment_name`"
            )
            raise told from None
        return dict(applied.to_dict())

    def apply_over(self, manifest: Manifest, seen: Manifest | None) -> Manifest:
        """Applies to an object as it was seen: somebody's change of its spec in between is not overwritten.

        Args:
            manifest: The fields to own.
            seen: The object as it was read; None if it did not exist.

        Raises:
            UserError: If its spec has changed since, besides what `apply` raises.
        """
        name, told = manifest["metadata"]["name"], f"{manifest['kind']} {manifest['metadata']['name']}"
        for _ in range(5):
            if seen is None:
                return self.apply(manifest)
            locked = manifest["metadata"] | {"resourceVersion": seen["metadata"]["resourceVersion"]}
            try:
                return self.apply(manifest | {"metadata": locked})
            except Refused as refused:
                if refused.status != 409:
                    raise
            now = self.get(manifest["apiVersion"], manifest["kind"], name)
            if now is not None and "spec" in manifest and _holds(now["spec"], manifest["spec"]):
                return now  # An answer that got lost: it was applied the first time.
            if now is None or now["spec"] != seen["spec"]:
                break
            seen = now  # Its status alone has changed.
        raise UserError(
            f"{told} was changed by someone else in this moment, and was not overwritten. Run the card again"
        )

    def delete(self, api_version: str, kind: str, name: str) -> None:
        """Deletes an object with all that it owns; an absent one is fine."""
        resource = self._resource(api_version, kind)
        gone = lambda: resource.delete(  # noqa: E731
            name=name, namespace=self.namespace, propagation_policy="Foreground", _request_timeout=TIMEOUT
        )
        with contextlib.suppress(NotFoundError):
            self._call(f"deleting {kind} {name}", gone)

    def changed(self, manifest: Manifest, seconds: float) -> None:
        """Returns when an object changes, at the latest after so many seconds.

        The watch only saves time: whoever waits reads everything again. So one that has expired (410), breaks off or
        is forbidden is no failure, and the time is waited out.
        """
        began, resource = time.monotonic(), self._resource(manifest["apiVersion"], manifest["kind"])
        if seconds < 1:  # Shorter than the API's shortest watch.
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
                # What follows a change follows soon: pods and Deployment are read a little after it.
                seconds = min(seconds, time.monotonic() - began + self.pause)
                break
        except (client.ApiException, urllib3.exceptions.HTTPError):
            pass
        time.sleep(max(0.0, began + seconds - time.monotonic()))

    def log(self, pod: str, container: str, lines: int = 20, previous: bool = False) -> str:
        """Returns the last lines of a container's log, or why there are none."""
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
        """Turns what the API or the network refuses into a readable error; an absent object stays what it is."""
        try:
            return call()
        except (NotFoundError, ResourceNotFoundError):
            raise
        except client.ApiException as error:
            raise Refused(doing, error) from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            # The discovery client tells of an unreachable plain-http server with a ValueError.
            raise UserError(f"{doing}: the Kubernetes API does not answer: {error}") from None

    def _discovered(self, api_version: str, kind: str) -> Any:
        # Without the prefix, a search for a core kind would read every group that has a v1.
        prefix = "apis" if "/" in api_version else "api"
        return self._dynamic.resources.get(prefix=prefix, api_version=api_version, kind=kind)

    def _resource(self, api_version: str, kind: str) -> Any:
        try:
            return self._call("looking at the API", lambda: self._discovered(api_version, kind))
        except (ResourceNotFoundError, NotFoundError):
            raise UserError(
                f"the cluster knows no {kind} of {api_version}. Install KServe (0.15 or newer), or use "
                "target = manifest"
            ) from None


def _holds(whole: Any, part: Any) -> bool:
    """Tells whether every field of a manifest has its value in an object."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(name in whole and _holds(whole[name], value) for name, value in part.items())
    return bool(whole == part)
