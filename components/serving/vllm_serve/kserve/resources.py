"""Checks that the cluster has the accelerators, and the namespace the quota, for a deployment."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from kubernetes.utils import parse_quantity

from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster, Manifest, Refused
from llm_finetune.components.serving.vllm_serve.kserve.manifests import Deployment

AUTOSCALERS = {"karpenter.sh", "autoscaling.x-k8s.io"}


def nodes(cluster: Cluster, deployment: Deployment) -> tuple[list[str], list[str]]:
    """Checks that some node, or an autoscaler, has what one pod asks for.

    Args:
        cluster: Where.
        deployment: What one pod takes.

    Returns:
        What is missing, and what is only worth a note.
    """
    if not deployment.gpu_count:
        return [], []
    all_nodes, wanted = cluster.list("v1", "Node"), deployment.gpu_type
    counts = {node["metadata"]["name"]: int(_allocatable(node).get(wanted, 0)) for node in all_nodes}
    enough = [node for node in all_nodes if counts[node["metadata"]["name"]] >= deployment.gpu_count]
    if any(_selected(node, deployment.node_selector) for node in enough):
        return [], []
    if enough:
        labels = ", ".join(f"{key}={value}" for key, value in deployment.node_selector.items())
        lack = f"no node with {deployment.gpu_count} {wanted} has the labels of node_selector ({labels})"
    elif most := max(counts.values(), default=0):
        lack = f"gpu_count = {deployment.gpu_count}, but no node has more than {most} {wanted}"
    else:
        kinds = sorted({name for node in all_nodes for name in _allocatable(node) if "/" in name})
        offered = f"; the nodes offer {', '.join(kinds)}" if kinds else ""
        lack = f"no node has {wanted}{offered}"
    if scaler := sorted(AUTOSCALERS & cluster.groups()) or _cluster_autoscaler(cluster):
        return [], [f"{lack}; counting on the autoscaler ({', '.join(scaler)}) to add one"]
    return [f"{lack}. Add such a node or its device plugin, or correct gpu_type, gpu_count or node_selector"], []


def quota(cluster: Cluster, deployment: Deployment, existing: Manifest | None) -> tuple[list[str], list[str]]:
    """Checks that the namespace's quotas leave room for the pods that the rollout adds.

    Args:
        cluster: Where.
        deployment: What one pod takes, and how many there are.
        existing: The InferenceService that is replaced, if any.

    Returns:
        What is missing, and no notes.
    """
    running = ((existing or {}).get("spec") or {}).get("predictor", {}).get("minReplicas", 1) if existing else 0
    added = max(0, deployment.replicas - running) + (deployment.max_surge if running else 0)
    pod = {"cpu": deployment.cpu, "memory": deployment.memory}
    if deployment.gpu_count:
        pod[deployment.gpu_type] = str(deployment.gpu_count)
    asked = {"pods": Decimal(added), "count/pods": Decimal(added)}
    for name, amount in pod.items():
        asked[f"requests.{name}"] = asked[name] = parse_quantity(amount) * added
        if name != "cpu":
            asked[f"limits.{name}"] = parse_quantity(amount) * added
    problems = []
    for entry in cluster.list("v1", "ResourceQuota"):
        status = entry.get("status") or {}
        used: Mapping[str, Any] = status.get("used") or {}
        for name, hard in (status.get("hard") or {}).items():
            left = parse_quantity(hard) - parse_quantity(used.get(name, 0))
            if name in asked and asked[name] > left:
                problems.append(
                    f"quota {entry['metadata']['name']} leaves {_shown(left)} {name} (of {hard}), the rollout adds "
                    f"{_shown(asked[name])} ({added} pods). Raise it, or lower gpu_count, cpu, memory or replicas"
                    + (", or set max_surge = 0" if running and deployment.max_surge else "")
                )
    return problems, []


def _allocatable(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return (node.get("status") or {}).get("allocatable") or {}


def _selected(node: Mapping[str, Any], selector: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def _cluster_autoscaler(cluster: Cluster) -> list[str]:

    try:
        status = cluster.get("v1", "ConfigMap", "cluster-autoscaler-status", namespace="kube-system")
    except Refused:
        return []
    return ["cluster-autoscaler"] if status else []


def _shown(amount: Decimal) -> str:
    """Returns a quantity as people write it."""
    for unit, size in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20)):
        if amount >= size and amount % size == 0:
            return f"{amount // size}{unit}"
    return f"{amount.normalize():f}"
