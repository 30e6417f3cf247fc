"""What every built manifest must keep to, each rule as a function that yields the violations."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from manifests.kustomize import Manifest, of_kind

# Kinds without a namespace.
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "ClusterQueue", "ResourceFlavor"}
EXACT_VERSION = re.compile(r"(:v?\d+\.\d+\.\d+([.-][\w.-]+)?(@sha256:[0-9a-f]{64})?|@sha256:[0-9a-f]{64})$")
# The volume types of the `restricted` pod security standard.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
RESTRICTED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
# Pods that are not `restricted`, by what they do instead: only root may give a volume to a group.
EXCEPTIONS = {
    "Job llm-finetune-volumes": {"runAsNonRoot": None, "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "FOWNER"]}}
}


def violations(manifests: Iterable[Manifest]) -> list[str]:
    """Returns every violation of every rule."""
    manifests = list(manifests)
    rules = (_images, _rights, _pod_security, _names, _secrets)
    return [found for rule in rules for found in rule(manifests)]


def _images(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        for path, value in _leaves(manifest):
            if path.endswith(".image") and not EXACT_VERSION.search(str(value)):
                yield f"{_title(manifest)}: image {value} has no exact version"


def _rights(manifests: list[Manifest]) -> Iterator[str]:
    roles = {m["metadata"]["name"]: m for m in manifests if m["kind"] in ("Role", "ClusterRole")}
    for name, role in roles.items():
        for rule in role["rules"]:
            if any("*" in rule.get(part, []) for part in ("verbs", "resources", "apiGroups", "resourceNames")):
                yield f"{_title(role)}: a wildcard in {rule}"
            if {"escalate", "bind", "impersonate"} & set(rule["verbs"]):
                yield f"{_title(role)}: {rule['verbs']} lead to other rights"
        if not any(b["roleRef"]["name"] == name for b in manifests if b["kind"].endswith("RoleBinding")):
            yield f"{_title(role)}: bound to nobody"
    for binding in (m for m in manifests if m["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        if binding["roleRef"]["name"] not in roles:
            yield f"{_title(binding)}: binds {binding['roleRef']['name']}, which is not among our own roles"
        for subject in binding["subjects"]:
            if subject["kind"] != "ServiceAccount" or not subject.get("namespace"):
                yield f"{_title(binding)}: {subject} is no service account of a namespace"


def _pod_security(manifests: list[Manifest]) -> Iterator[str]:
    pods = [(_title(runtime), runtime["spec"]) for runtime in of_kind(manifests, "ServingRuntime")]
    pods += [(_title(job), job["spec"]["template"]["spec"]) for job in of_kind(manifests, "Job")]
    for title, spec in pods:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{title}: {field}"
        for volume in spec.get("volumes", []):
            if not set(volume) - {"name"} <= VOLUMES:
                yield f"{title}: volume {volume} is not of a restricted type"
        wanted = RESTRICTED | EXCEPTIONS.get(title, {})
        for container in spec["containers"]:
            context = container.get("securityContext", {})
            wrong = {field for field, value in wanted.items() if context.get(field) != value}
            if wrong or (context.get("runAsUser") == 0 and title not in EXCEPTIONS):
                yield f"{title}: container {container['name']} is not `restricted` in {sorted(wrong)}"


def _names(manifests: list[Manifest]) -> Iterator[str]:
    seen = set()
    for manifest in manifests:
        metadata = manifest["metadata"]
        key = (manifest["apiVersion"].partition("/")[0], manifest["kind"], metadata.get("namespace"), metadata["name"])
        if key in seen:
            yield f"{_title(manifest)}: there twice"
        seen.add(key)
        if manifest["kind"] in CLUSTER_WIDE and "namespace" in metadata:
            yield f"{_title(manifest)}: has no namespace, but one is written"
        if manifest["kind"] not in CLUSTER_WIDE and not metadata.get("namespace"):
            yield f"{_title(manifest)}: without a namespace"
    for account in of_kind(manifests, "ServiceAccount"):
        if any(re.search(r"SERVICE|NAMESPACE|REPLACE", str(value)) for _, value in _leaves(account)):
            yield f"{_title(account)}: a placeholder was left"


def _secrets(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in of_kind(manifests, "Secret"):
        yield f"{_title(manifest)}: a secret's value lies in Git"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value


def _title(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"
