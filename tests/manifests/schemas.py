"""Checks objects against the schemas of Kubernetes and of the custom resources, unknown fields refused."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from manifests.kustomize import Manifest

VERSIONS = tuple(f"1.{minor}" for minor in range(28, 38))
CORE = {"v1", "batch/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"}
# Custom resources whose schemas are not among those that LLM_FINETUNE_CRD_SCHEMAS names.
UNSCHEMED = {
    "external-secrets.io/v1", "keda.sh/v1alpha1", "kueue.x-k8s.io/v1beta2", "kustomize.toolkit.fluxcd.io/v1",
    "security.istio.io/v1", "source.toolkit.fluxcd.io/v1",
}  # fmt: skip


def core_mistakes(manifest: Manifest, version: str) -> list[str]:
    """Returns what a version of Kubernetes would refuse of a core object, unknown fields included."""
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']} {manifest['metadata']['name']} in {version}: {error.path} {error.message}"]
    return []


def custom_mistakes(manifest: Manifest) -> list[str]:
    """Returns what the schema of a custom resource refuses, unknown fields included."""
    group, version = manifest["apiVersion"].split("/")
    title = f"{manifest['kind']} {manifest['metadata']['name']}"
    file = Path(os.environ["LLM_FINETUNE_CRD_SCHEMAS"]) / f"{group}_{manifest['kind']}_{version}.json"
    return [f"{title}: {error.json_path} {error.message}" for error in _validator(file).iter_errors(manifest)]


@functools.cache
def _validator(file: Path) -> Any:
    return jsonschema.Draft202012Validator(_closed(json.loads(file.read_text())))


def _closed(schema: Any) -> Any:
    """Turns a structural schema of Kubernetes into one that refuses unknown fields."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: _closed(value) for key, value in schema.items() if key not in ("default", "format", "properties")}
    if "properties" in schema:
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
    return closed
