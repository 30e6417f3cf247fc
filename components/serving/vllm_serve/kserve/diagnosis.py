"""Diagnoses a rollout that makes no progress, from the status of its objects.

One function per kind of object. Each finding has a time after which the rollout fails:

| status | action |
|---|---|
| InferenceService is InvalidSpec or BlockedByFailedLoad | fail at the second observation |
| image cannot be pulled, or container cannot be configured | fail after `image_pull` seconds |
| storage initializer failed | fail at once, with its termination message |
| server was OOMKilled, or has crashed three times | fail at once, with the end of its log |
| pods cannot be created (quota, admission) | fail at once |
| pod is unschedulable | fail after `unschedulable` seconds, or at once if the autoscaler will not add a node |
| progress deadline exceeded | wait: the Deployment continues, and large models are slow to load |
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llm_finetune.components.serving.vllm_serve.kserve.manifests import Manifest

INIT, SERVER = "storage-initializer", "kserve-container"
IMAGE_REASONS = (
    "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
    "CreateContainerError",
)  # fmt: skip
KNOWN_ERRORS = {
    "CUDA out of memory": "the model does not fit on the GPU: lower max_model_len or gpu_memory_utilization, or add "
    "accelerators",
    "larger than the maximum number of tokens that can be stored in KV cache": "lower max_model_len",
    "KV cache is needed": "lower max_model_len",
    "derived max_model_len": "max_model_len exceeds the model's maximum; lower it, or set it to 0",
    "unrecognized arguments": "the vLLM of the runtime does not support a flag; use the image of manifests/base",
    "trust_remote_code": "the model needs custom code (trust_remote_code), which is never executed",
    "NoCredentials": "the service account has no secret with the store's keys",
    "Unable to locate credentials": "the service account has no secret with the store's keys",
    "AccessDenied": "the keys have no read access to the model's folder",
    "HeadBucket": "KServe 0.18 and later needs s3:ListBucket on the bucket",
    "403": "the store rejects the keys, or they have no permission to list the bucket",
    "NoSuchBucket": "the bucket does not exist at this endpoint; check storage_endpoint",
    "No space left": "the pod's disk is too small for the model",
}


@dataclass(frozen=True)
class Timeouts:
    """Timeouts and intervals of a rollout, in seconds.

    Attributes:
        ready: Timeout of the whole rollout.
        poll: Polling interval.
        image_pull: Timeout of an image pull that fails.
        unschedulable: Timeout of an unschedulable pod.
        settle: Time for KServe to reconcile a change, and for routes to be updated.
        deletion: Timeout of a deletion.
        retry_delay: Delay before the first retry of an API request.
    """

    ready: float = 1800
    poll: float = 2
    image_pull: float = 180
    unschedulable: float = 1200
    settle: float = 15
    deletion: float = 120
    retry_delay: float = 0.5


@dataclass(frozen=True)
class Finding:
    """A problem of a rollout.

    Attributes:
        key: Identifies the problem across observations.
        text: Message for the user.
        tolerated_seconds: Time after which the problem fails the rollout; infinite if it may resolve.
        min_observations: Number of observations before it fails the rollout.
        pod: Pod whose log belongs into the message.
        container: Container of that log.
        previous: Whether the log of the previous container instance is meant.
    """

    key: str
    text: str
    tolerated_seconds: float = 0
    min_observations: int = 1
    pod: str = ""
    container: str = ""
    previous: bool = False


def diagnose(
    service: Manifest, before: Manifest | None, workload: Manifest | None, pods: Sequence[Manifest],
    events: Sequence[Manifest], timeouts: Timeouts,
) -> list[Finding]:  # fmt: skip
    """Returns the problems of a rollout, the most severe first.

    Args:
        service: The InferenceService.
        before: The InferenceService before the change, whose failures do not count.
        workload: Deployment or Knative Revision of the new pods, if it exists.
        pods: The new pods.
        events: Their events.
        timeouts: Timeouts of the rollout.
    """
    found = [*of_workload(workload or {})]
    for pod in pods:
        found += of_pod(pod, events, timeouts)
    found += of_service(service, before, timeouts)
    return sorted(found, key=lambda finding: finding.tolerated_seconds)


def of_service(service: Manifest, before: Manifest | None, timeouts: Timeouts) -> Iterator[Finding]:
    """Yields problems from the model status of the InferenceService."""
    status = _model_status(service)
    if status.get("transitionStatus") not in ("InvalidSpec", "BlockedByFailedLoad"):
        return
    failure = status.get("lastFailureInfo") or {}
    message = ": ".join(filter(None, [failure.get("reason"), failure.get("message")])) or status["transitionStatus"]
    # Until KServe has reconciled the new revision, the status is that of the previous one.
    stale = before is not None and _model_status(before) == status
    # A ServingRuntime that was just applied may not be in the controller's cache yet.
    early = failure.get("reason") == "RuntimeNotRecognized"
    tolerated = 2 * timeouts.settle if stale or early else 0
    yield Finding("model", f"KServe: {message}{hint(message)}", tolerated, min_observations=2)


def of_workload(workload: Manifest) -> Iterator[Finding]:
    """Yields problems from the conditions of a Deployment or Knative Revision."""
    for condition in (workload.get("status") or {}).get("conditions") or []:
        message = f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            quota = ". Raise the quota, or lower gpu_count, cpu, memory, replicas or max_surge"
            yield Finding("pods", f"pods cannot be created: {message}{quota if 'quota' in message else ''}")
        elif condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            yield Finding("progress", f"slow rollout: {message}", math.inf)
        elif condition["type"] == "ResourcesAvailable" and condition["status"] == "False":
            fatal = "quota" in message or "forbidden" in message
            yield Finding("pods", f"pods cannot be created: {message}", 0 if fatal else math.inf)


def of_pod(pod: Manifest, events: Sequence[Manifest], timeouts: Timeouts) -> Iterator[Finding]:
    """Yields problems of one pod."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield _unschedulable(name, condition, events, timeouts)
    for state in status.get("initContainerStatuses") or []:
        yield from _of_init(name, state, timeouts)
    for state in status.get("containerStatuses") or []:
        yield from _of_container(name, state, timeouts)


def progress(pods: Sequence[Manifest]) -> str:
    """Returns a description of what the pods are doing."""
    doing = [word for pod in pods if (word := _pod_activity(pod))]
    return ", ".join(sorted(set(doing)))


def hint(text: str) -> str:
    """Returns the fix of a known error in a text, in parentheses; empty for an unknown one."""
    return next((f" ({meaning})" for words, meaning in KNOWN_ERRORS.items() if words.lower() in text.lower()), "")


def _model_status(service: Manifest) -> Manifest:
    return (service.get("status") or {}).get("modelStatus") or {}


def _unschedulable(name: str, condition: Manifest, events: Sequence[Manifest], timeouts: Timeouts) -> Finding:
    message = condition.get("message") or condition.get("reason") or "no reason given"
    refused = [
        event.get("message", "")
        for event in events
        if event.get("reason") == "NotTriggerScaleUp" and (event.get("involvedObject") or {}).get("name") == name
    ]
    fix = (
        "Free a node, correct gpu_type, gpu_count or node_selector, or set max_surge = 0 if an update lacks a spare GPU"
    )
    if refused:
        return Finding(f"node {name}", f"no node for pod {name}: {message}; the autoscaler: {refused[-1]}. {fix}")
    text = f"no node for pod {name} yet: {message}. {fix}"
    return Finding(f"node {name}", text, timeouts.unschedulable)


def _of_init(pod: str, state: Manifest, timeouts: Timeouts) -> Iterator[Finding]:
    container, waiting, ended = state["name"], _waiting(state), _terminated(state)
    if waiting.get("reason") in IMAGE_REASONS:
        yield _image(pod, container, waiting, timeouts)
    elif ended.get("exitCode") or waiting.get("reason") == "CrashLoopBackOff":
        # KServe sets terminationMessagePolicy, so that the end of the log is the termination message.
        reason = (ended.get("message") or "").strip()
        if ended.get("reason") == "OOMKilled":
            reason = (
                "OOMKilled. Its memory limit is 1Gi unless the ClusterStorageContainer (or, from KServe 0.20, "
                "storageContainerName) sets a higher one"
            )
        restarted = bool((state.get("state") or {}).get("waiting"))
        text = f"loading the weights failed in {container} of pod {pod}{hint(reason)}: {reason or 'no message'}"
        yield Finding(f"weights {pod}", text, pod="" if reason else pod, container=container, previous=restarted)


def _of_container(pod: str, state: Manifest, timeouts: Timeouts) -> Iterator[Finding]:
    container, waiting, ended = state["name"], _waiting(state), _terminated(state)
    restarted = bool((state.get("state") or {}).get("waiting")) or not (state.get("state") or {}).get("terminated")
    if waiting.get("reason") in IMAGE_REASONS:
        yield _image(pod, container, waiting, timeouts)
    elif ended.get("reason") == "OOMKilled":
        text = f"{container} of pod {pod} was OOMKilled; raise `memory`"
        yield Finding(f"crash {pod}", text, pod=pod, container=container, previous=restarted)
    elif state.get("restartCount", 0) >= 3 and not state.get("ready"):
        text = f"{container} of pod {pod} has crashed {state['restartCount']} times"
        text += f" (exit status {ended['exitCode']})" if "exitCode" in ended else ""
        yield Finding(f"crash {pod}", text, pod=pod, container=container, previous=restarted)


def _image(pod: str, container: str, waiting: Manifest, timeouts: Timeouts) -> Finding:
    message = ": ".join(filter(None, [waiting["reason"], waiting.get("message")]))
    return Finding(f"image {pod}", f"{container} of pod {pod} cannot start: {message}", timeouts.image_pull)


def _waiting(state: Manifest) -> Manifest:
    return (state.get("state") or {}).get("waiting") or {}


def _terminated(state: Manifest) -> Manifest:
    now, last = state.get("state") or {}, state.get("lastState") or {}
    return now.get("terminated") or last.get("terminated") or {}


def _pod_activity(pod: Manifest) -> str:
    status = pod.get("status") or {}
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or []}
    if conditions.get("Ready") == "True":
        return ""
    if conditions.get("PodScheduled") == "False":
        return "waiting for a node"
    for state in status.get("initContainerStatuses") or []:
        if "running" in (state.get("state") or {}):
            return "loading the weights"
        if ((state.get("state") or {}).get("terminated") or {}).get("reason") != "Completed":
            return "pulling the image" if _waiting(state) else "loading the weights"
    for state in status.get("containerStatuses") or []:
        if state["name"] == SERVER and "running" in (state.get("state") or {}):
            return "starting the server"
    return "pulling the image"
