"""Explains how to allow requests that a service mesh rejects."""

import yaml

from llm_finetune.components.serving.vllm_serve.smoke import SmokeFailure


def explain_refusal(failure: SmokeFailure, namespace: str, name: str) -> SmokeFailure:
    """Adds the missing policies to a failure with status 403.

    Args:
        failure: The failure.
        namespace: Namespace of the InferenceService.
        name: Name of the InferenceService.
    """
    return SmokeFailure(
        f"{failure}. The service mesh rejects requests of pipeline steps, which have no sidecar and thus no identity. "
        f"Allow requests to the model and restrict them with a NetworkPolicy:\n{policies(namespace, name)}",
        failure.status,
    )


def policies(namespace: str, name: str) -> str:
    """Returns an AuthorizationPolicy that allows requests to the model, and a NetworkPolicy that restricts them."""
    pods = {"matchLabels": {"serving.kserve.io/inferenceservice": name}}
    metadata = {"name": f"allow-{name}", "namespace": namespace}
    allow = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": metadata,
        "spec": {
            "action": "ALLOW",
            "selector": pods,
            "rules": [{"to": [{"operation": {"paths": ["/v1/*", "/health", "/metrics"]}}]}],
        },
    }
    istio = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}}
    restrict = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": pods,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}, istio]}],
        },
    }
    return yaml.safe_dump_all([allow, restrict], sort_keys=False, explicit_start=True)
