"""Reads from the objects of a rollout why it does not go on, and whether waiting longer can help.

One function per kind of object; each finding says how long it may last before the deployment is given up:

| signal | action |
|---|---|
| the InferenceService is InvalidSpec or BlockedByFailedLoad | give up when seen twice |
| image cannot be pulled, container cannot be configured | give up after `image` seconds |
| storage initializer failed | give up at once, with its last words |
| server killed for memory, or crashed three times | give up at once, with the end of its log |
| pods cannot be made (quota, admission) | give up at once |
| no node for the pod | wait `unschedulable` seconds; give up at once when the autoscaler says that it cannot help |
| progress deadline exceeded | wait: Kubernetes goes on, and so does a large model |
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]

INIT, SERVER = "storage-initializer", "kserve-container"
IMAGE_REASONS = (
    "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
    "CreateContainerError",
)  # fmt: skip
KNOWN_WORDS = {
    "CUDA out of memory": "the model does not fit the GPU: lower max_model_len or gpu_memory_utilization, or take more "
    "accelerators",
    "larger than the maximum number of tokens that can be stored in KV cache": "lower max_model_len",
    "KV cache is needed": "lower max_model_len",
    "derived max_model_len": "max_model_len is longer than the model's own; lower it, or leave it 0",
    "unrecognized arguments": "the runtime's vLLM does not know a flag; take the image of manifests/base",
    "trust_remote_code": "the model brings its own code, which is never run",
    "NoCredentials": "the service account has no secret with the store's keys",
    "Unable to locate credentials": "the service account has no secret with the store's keys",
    "AccessDenied": "the keys may not read the model's folder",
    "HeadBucket": "KServe 0.18 and later asks for s3:ListBucket on the whole bucket; allow it",
    "403": "the store's keys are refused, or may not list the bucket",
    "NoSuchBucket": "the bucket does not exist at this endpoint; see storage_endpoint",
    "No space left": "the pod's disk is too small for the model",
}


@dataclass(frozen=True)
class Pace:
    """How long to wait for what, in seconds.

    Attributes:
        ready: For the whole rollout.
        poll: Between two looks.
        image: For an image that cannot be pulled.
        unschedulable: For a node.
        settle: For KServe to take up a change, and for routes to follow.
        gone: For a deletion.
        pause: Before the second try of a request to the API.
    """

    ready: float = 1800
    poll: float = 2
    image: float = 180
    unschedulable: float = 1200
    settle: float = 15
    gone: float = 120
    pause: float = 0.5


@dataclass(frozen=True)
class Finding:
    """Something that is in the way.

    Attributes:
        key: The same for the same trouble at every look.
        text: For people.
        seconds: How long it may last; infinite for what waiting may mend.
        looks: How often it must be seen.
        pod: Pod whose log tells more.
        container: Its container.
        previous: Whether the log is that of the container's last life.
    """

    key: str
    text: str
    seconds: float = 0
    looks: int = 1
    pod: str = ""
    container: str = ""
    previous: bool = False


def findings(
    service: Object, before: Object | None, workload: Object | None, pods: Sequence[Object], events: Sequence[Object],
    pace: Pace,
) -> list[Finding]:  # fmt: skip
    """Returns all that is in the way of a rollout, the gravest first.

    Args:
        service: The InferenceService.
        before: What it was before the change, whose old failures are not held against the new revision.
        workload: The Deployment or Knative Revision of the new pods, if there is one.
        pods: The new pods alone.
        events: Their events.
        pace: How long each kind of trouble may last.
    """
    found = [*of_workload(workload or {})]
    for pod in pods:
        found += of_pod(pod, events, pace)
    found += of_service(service, before, pace)
    return sorted(found, key=lambda finding: finding.seconds)


def of_service(service: Object, before: Object | None, pace: Pace) -> Iterator[Finding]:
    """Yields what KServe says of the model."""
    status = _model_status(service)
    if status.get("transitionStatus") not in ("InvalidSpec", "BlockedByFailedLoad"):
        return
    failure = status.get("lastFailureInfo") or {}
    told = ": ".join(filter(None, [failure.get("reason"), failure.get("message")])) or status["transitionStatus"]
    # The status of an earlier revision stays until KServe has looked at the new one.
    stale = before is not None and _model_status(before) == status
    # A runtime that was applied a moment ago may not be in the controller's cache yet.
    early = failure.get("reason") == "RuntimeNotRecognized"
    yield Finding("model", f"KServe: {told}{hint(told)}", 2 * pace.settle if stale or early else 0, looks=2)


def of_workload(workload: Object) -> Iterator[Finding]:
    """Yields what a Deployment or a Knative Revision says."""
    for condition in (workload.get("status") or {}).get("conditions") or []:
        told = f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            quota = ". Raise the quota, or lower gpu_count, cpu, memory, replicas or max_surge"
            yield Finding("pods", f"pods cannot be made: {told}{quota if 'quota' in told else ''}")
        elif condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            yield Finding("progress", f"slow: {told}", math.inf)
        elif condition["type"] == "ResourcesAvailable" and condition["status"] == "False":
            fatal = "quota" in told or "forbidden" in told
            yield Finding("pods", f"pods cannot be made: {told}", 0 if fatal else math.inf)


def of_pod(pod: Object, events: Sequence[Object], pace: Pace) -> Iterator[Finding]:
    """Yields what is wrong with one pod."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield _unschedulable(name, condition, events, pace)
    for state in status.get("initContainerStatuses") or []:
        yield from _of_init(name, state, pace)
    for state in status.get("containerStatuses") or []:
        yield from _of_container(name, state, pace)


def progress(pods: Sequence[Object]) -> str:
    """Returns what the pods are doing, in words."""
    doing = [word for pod in pods if (word := _doing(pod))]
    return ", ".join(sorted(set(doing)))


def hint(text: str) -> str:
    """Returns what a known message asks for."""
    return next((f" ({meaning})" for words, meaning in KNOWN_WORDS.items() if words.lower() in text.lower()), "")


def _model_status(service: Object) -> dict[str, Any]:
    return (service.get("status") or {}).get("modelStatus") or {}


def _unschedulable(name: str, condition: Object, events: Sequence[Object], pace: Pace) -> Finding:
    told = condition.get("message") or condition.get("reason") or "no reason given"
    refused = [
        event.get("message", "")
        for event in events
        if event.get("reason") == "NotTriggerScaleUp" and (event.get("involvedObject") or {}).get("name") == name
    ]
    ways = (
        "Free a node, correct gpu_type, gpu_count or node_selector, or set max_surge = 0 if only an update needs room"
    )
    if refused:
        return Finding(f"node {name}", f"no node for pod {name}: {told}; the autoscaler: {refused[-1]}. {ways}")
    text = f"no node for pod {name} yet: {told}. {ways}"
    return Finding(f"node {name}", text, pace.unschedulable)


def _of_init(pod: str, state: Object, pace: Pace) -> Iterator[Finding]:
    container, waiting, ended = state["name"], _waiting(state), _ended(state)
    if waiting.get("reason") in IMAGE_REASONS:
        yield _image(pod, container, waiting, pace)
    elif ended.get("exitCode") or waiting.get("reason") == "CrashLoopBackOff":
        # KServe lets the initializer's last words become the termination message.
        words = (ended.get("message") or "").strip()
        if ended.get("reason") == "OOMKilled":
            words = (
                "killed for memory. Its limit is 1Gi unless the ClusterStorageContainer (or, from KServe 0.20, "
                "storageContainerName) says more"
            )
        restarted = bool((state.get("state") or {}).get("waiting"))
        text = f"loading the weights failed in {container} of pod {pod}{hint(words)}: {words or 'no message'}"
        yield Finding(f"weights {pod}", text, pod="" if words else pod, container=container, previous=restarted)


def _of_container(pod: str, state: Object, pace: Pace) -> Iterator[Finding]:
    container, waiting, ended = state["name"], _waiting(state), _ended(state)
    restarted = bool((state.get("state") or {}).get("waiting")) or not (state.get("state") or {}).get("terminated")
    if waiting.get("reason") in IMAGE_REASONS:
        yield _image(pod, container, waiting, pace)
    elif ended.get("reason") == "OOMKilled":
        text = f"{container} of pod {pod} was killed for memory; raise `memory`"
        yield Finding(f"crash {pod}", text, pod=pod, container=container, previous=restarted)
    elif state.get("restartCount", 0) >= 3 and not state.get("ready"):
        text = f"{container} of pod {pod} has crashed {state['restartCount']} times"
        text += f" (exit status {ended['exitCode']})" if "exitCode" in ended else ""
        yield Finding(f"crash {pod}", text, pod=pod, container=container, previous=restarted)


def _image(pod: str, container: str, waiting: Object, pace: Pace) -> Finding:
    told = ": ".join(filter(None, [waiting["reason"], waiting.get("message")]))
    return Finding(f"image {pod}", f"{container} of pod {pod} cannot start: {told}", pace.image)


def _waiting(state: Object) -> dict[str, Any]:
    return (state.get("state") or {}).get("waiting") or {}


def _ended(state: Object) -> dict[str, Any]:
    now, last = state.get("state") or {}, state.get("lastState") or {}
    return now.get("terminated") or last.get("terminated") or {}


def _doing(pod: Object) -> str:
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
