"""What to do when a service mesh does not let the pipeline ask the model."""

import yaml

from llm_finetune.components.serving.vllm_serve.smoke import SmokeFailure


def explained(failure: SmokeFailure, namespace: str, name: str) -> SmokeFailure:
    """Returns a refusal (403) with the exact policy that is missing.

    Args:
        failure: The refusal.
        namespace: The model's namespace.
        name: Its InferenceService.
    """
    return SmokeFailure(
        f"{failure}. A mesh refuses requests of pipeline steps, which run without a sidecar and so without an "
        f"identity. Let the model's API be asked, and fence it by network instead:\n{policies(namespace, name)}",
        failure.status,
    )


def policies(namespace: str, name: str) -> str:
    """Returns the AuthorizationPolicy that lets the model be asked, and the NetworkPolicy that fences it again."""
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
    spaces = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": s}}} for s in ("istio-system",)]
    fence = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": pods,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}, *spaces]}],
        },
    }
    documents = [allow, fence]
    return yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True)
