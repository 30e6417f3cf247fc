"""Checks the accelerators of the nodes and the quotas of the namespace."""

from collections.abc import Mapping
from decimal import Decimal

from kubernetes.utils import parse_quantity

from llm_finetune.components.serving.vllm_serve.kserve.cluster import ApiError, Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.manifests import Deployment

AUTOSCALERS = {"karpenter.sh", "autoscaling.x-k8s.io"}


def nodes(cluster: Cluster, deployment: Deployment) -> tuple[list[str], list[str]]:
    """Checks that a node has the accelerators of one pod, or that an autoscaler may add such a node.

    Args:
        cluster: The cluster.
        deployment: The deployment.

    Returns:
        Problems and notes.
    """
    settings = deployment.settings
    if not settings.gpus:
        return [], []
    all_nodes, wanted = cluster.list("v1", "Node"), settings.gpu_type
    counts = {node["metadata"]["name"]: int(_allocatable(node).get(wanted, 0)) for node in all_nodes}
    enough = [node for node in all_nodes if counts[node["metadata"]["name"]] >= settings.gpus]
    if any(_selected(node, settings.node_selector) for node in enough):
        return [], []
    if enough:
        labels = ", ".join(f"{key}={value}" for key, value in settings.node_selector.items())
        problem = f"no node with {settings.gpus} {wanted} has the labels of node_selector ({labels})"
    elif most := max(counts.values(), default=0):
        problem = f"gpu_count = {settings.gpus}, but no node has more than {most} {wanted}"
    else:
        kinds = sorted({name for node in all_nodes for name in _allocatable(node) if "/" in name})
        offered = f"; the nodes have {', '.join(kinds)}" if kinds else ""
        problem = f"no node has {wanted}{offered}"
    if scaler := sorted(AUTOSCALERS & cluster.api_groups()) or _cluster_autoscaler(cluster):
        return [], [f"{problem}; the autoscaler ({', '.join(scaler)}) may add one"]
    return [f"{problem}. Add such a node or its device plugin, or correct gpu_type, gpu_count or node_selector"], []


def quota(cluster: Cluster, deployment: Deployment, existing: Manifest | None) -> tuple[list[str], list[str]]:
    """Checks that the quotas of the namespace allow the pods that the rollout adds.

    Args:
        cluster: The cluster.
        deployment: The deployment.
        existing: The InferenceService before the rollout, if it exists.

    Returns:
        Problems; the list of notes is empty.
    """
    settings = deployment.settings
    running = ((existing or {}).get("spec") or {}).get("predictor", {}).get("minReplicas", 1) if existing else 0
    added = max(0, settings.replicas - running) + (settings.max_surge if running else 0)
    pod = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        pod[settings.gpu_type] = str(settings.gpus)
    requested = {"pods": Decimal(added), "count/pods": Decimal(added)}
    for name, amount in pod.items():
        requested[f"requests.{name}"] = requested[name] = parse_quantity(amount) * added
        if name != "cpu":
            requested[f"limits.{name}"] = parse_quantity(amount) * added
    problems = []
    for entry in cluster.list("v1", "ResourceQuota"):
        status = entry.get("status") or {}
        used: Mapping[str, str] = status.get("used") or {}
        for name, hard in (status.get("hard") or {}).items():
            left = parse_quantity(hard) - parse_quantity(used.get(name, 0))
            if name in requested and requested[name] > left:
                needed = _format_quantity(requested[name])
                problems.append(
                    f"quota {entry['metadata']['name']} leaves {_format_quantity(left)} {name} (of {hard}), the "
                    f"rollout adds {needed} ({added} pods). Raise it, or lower gpu_count, cpu, memory or replicas"
                    + (", or set max_surge = 0" if running and settings.max_surge else "")
                )
    return problems, []


def _allocatable(node: Manifest) -> dict[str, str]:
    return dict((node.get("status") or {}).get("allocatable") or {})


def _selected(node: Manifest, selector: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def _cluster_autoscaler(cluster: Cluster) -> list[str]:
    try:
        status = cluster.get("v1", "ConfigMap", "cluster-autoscaler-status", namespace="kube-system")
    except ApiError:
        return []
    return ["cluster-autoscaler"] if status else []


def _format_quantity(amount: Decimal) -> str:
    """Returns a quantity with a binary unit where it has no remainder."""
    for unit, size in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20)):
        if amount >= size and amount % size == 0:
            return f"{amount // size}{unit}"
    return f"{amount.normalize():f}"
