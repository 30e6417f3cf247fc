"""Waits until the pods of one revision are ready; the Ready condition alone may belong to an older revision."""

import time
from dataclasses import dataclass, field

from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import (
    SERVER,
    Finding,
    Timeouts,
    diagnose,
    hint,
    progress,
)
from llm_finetune.components.serving.vllm_serve.kserve.manifests import MODE, MODES, REVISION, Manifest
from llm_finetune.components.shared.errors import UserError

API, KIND = "serving.kserve.io/v1beta1", "InferenceService"


class Superseded(UserError):
    """Another client changed the InferenceService during the rollout."""


@dataclass(frozen=True)
class Target:
    """The revision to wait for.

    Attributes:
        name: Name of the InferenceService.
        revision: Revision annotation of the new pods; empty for any.
        canary: Name of the canary entry; empty for the predictor.
        before: The InferenceService before the change, if it existed.
        workload_before: Generation of the Deployment before a change of the pods that keeps the revision; else 0.
    """

    name: str
    revision: str = ""
    canary: str = ""
    before: Manifest | None = None
    workload_before: int = 0


@dataclass
class _Snapshot:
    """State of a rollout at one moment; `pending` says what is not ready yet, empty if all is."""

    service: Manifest
    pending: str
    workload: Manifest | None = None
    pods: list[Manifest] = field(default_factory=list)


def mode_of(service: Manifest) -> str:
    """Returns the deployment mode of an InferenceService, in the current spelling."""
    spelt = (service.get("status") or {}).get("deploymentMode") or annotations(service).get(MODE) or "Standard"
    return MODES.get(spelt, spelt)


def annotations(service: Manifest) -> dict[str, str]:
    """Returns an object's annotations."""
    return dict((service.get("metadata") or {}).get("annotations") or {})


def revision_of(service: Manifest, canary: str = "") -> str:
    """Returns the revision in the spec of an InferenceService, of its predictor or of a canary entry."""
    spec = service.get("spec") or {}
    predictors = [spec.get("predictor") or {}]
    if canary:
        entries = [entry["predictor"] for entry in spec.get("canary") or []]
        predictors = [entry for entry in entries if entry.get("name") == canary]
    return str((predictors[0].get("annotations") or {}).get(REVISION, "")) if predictors else ""


def workload_name(service: Manifest, canary: str = "") -> str:
    """Returns the name of the Deployment, Service and Knative Service of a predictor."""
    own = canary or ((service.get("spec") or {}).get("predictor") or {}).get("name") or ""
    return "-".join(filter(None, [service["metadata"]["name"], own, "predictor"]))


def wait(cluster: Cluster, target: Target, timeouts: Timeouts) -> Manifest:
    """Waits until the pods of a revision are ready.

    Args:
        cluster: The cluster.
        target: The revision.
        timeouts: Timeouts of the rollout.

    Returns:
        The ready InferenceService.

    Raises:
        Superseded: If another revision was applied during the wait.
        UserError: If the rollout fails or times out; with the end of the container's log.
    """
    started, reported, first = time.monotonic(), "", dict[str, tuple[float, int]]()
    while True:
        seen, now = observe(cluster, target, time.monotonic() - started < timeouts.settle), time.monotonic()
        if not seen.pending:
            return seen.service
        events = cluster.list("v1", "Event", fields="reason=NotTriggerScaleUp") if _unscheduled(seen.pods) else []
        found = diagnose(seen.service, target.before, seen.workload, seen.pods, events, timeouts)
        first = {f.key: (first.get(f.key, (now, 0))[0], first.get(f.key, (now, 0))[1] + 1) for f in found}
        for finding in found:
            since, observations = first[finding.key]
            if observations >= finding.min_observations and now - since >= finding.tolerated_seconds:
                raise UserError(f"{KIND} {target.name} failed: {finding.text}{_log_excerpt(cluster, finding)}")
        doing = "; ".join(filter(None, [progress(seen.pods), *(f.text for f in found)])) or seen.pending
        if doing != reported:
            reported = doing
            print(f"waiting for {target.name}, {now - started:.0f} s: {doing}", flush=True)
        if now - started > timeouts.ready:
            raise UserError(
                f"{KIND} {target.name} was not ready after {timeouts.ready:.0f} s ({doing}; {seen.pending}). Raise "
                f"`ready_timeout` if it was still loading.{_newest_log(cluster, seen.pods)}"
            )
        cluster.wait_for_change(seen.service, timeouts.poll)


def observe(cluster: Cluster, target: Target, settling: bool = False) -> _Snapshot:
    """Reads the state of a rollout.

    Args:
        cluster: The cluster.
        target: The revision.
        settling: Whether KServe may not have updated the Deployment yet.
    """
    service = cluster.get(API, KIND, target.name)
    if service is None:
        raise Superseded(f"{KIND} {target.name} was deleted by another client during the rollout")
    current = revision_of(service, target.canary)
    if target.revision and current != target.revision:
        raise Superseded(
            f"{KIND} {target.name} was changed by another client during the rollout: its revision is "
            f"{current or '(none)'}, not {target.revision}. It was not changed back"
        )
    read_workload = _knative if mode_of(service) == "Knative" else _deployment
    seen = read_workload(cluster, service, target, settling)
    seen.pending = seen.pending or _service_pending(service, target)
    return seen


def _deployment(cluster: Cluster, service: Manifest, target: Target, settling: bool) -> _Snapshot:
    found = cluster.get("apps/v1", "Deployment", workload_name(service, target.canary))
    if found is None or (target.revision and _revision_annotation(found["spec"]["template"]) != target.revision):
        return _Snapshot(service, "KServe has not reconciled the change yet")
    pods, status = _pods(cluster, target), found.get("status") or {}
    generation, wanted = found["metadata"].get("generation", 0), found["spec"].get("replicas", 1)
    if settling and target.workload_before and generation <= target.workload_before:
        return _Snapshot(service, "KServe has not reconciled the change yet", found, pods)
    if status.get("observedGeneration", 0) < generation:
        return _Snapshot(service, "the Deployment is not observed yet", found, pods)
    counts = [status.get(key, 0) for key in ("updatedReplicas", "availableReplicas", "replicas")]
    pending = f"{counts[0]} of {wanted} new pods created, {counts[1]} available, {counts[2]} in total"
    return _Snapshot(service, "" if counts == [wanted] * 3 else pending, found, pods)


def _knative(cluster: Cluster, service: Manifest, target: Target, settling: bool) -> _Snapshot:
    del settling  # Every change of a Knative Service creates a new revision.
    found = cluster.get("serving.knative.dev/v1", "Service", workload_name(service, target.canary))
    status = (found or {}).get("status") or {}
    created, ready = status.get("latestCreatedRevisionName", ""), status.get("latestReadyRevisionName", "")
    revision = cluster.get("serving.knative.dev/v1", "Revision", created) if created else None
    if found is None or revision is None or (target.revision and _revision_annotation(revision) != target.revision):
        return _Snapshot(service, "KServe has not reconciled the change yet")
    pods, pending = _pods(cluster, target), ""
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0) or created != ready:
        pending = f"Knative revision {created} is not ready; latest ready revision: {ready or 'none'}"
    elif "canaryTrafficPercent" not in service["spec"]["predictor"]:
        pending = _traffic_pending(service, created)
    return _Snapshot(service, pending, revision, pods)


def _traffic_pending(service: Manifest, revision: str) -> str:
    """Returns which earlier revision still receives traffic, as after a canary; empty for none."""
    components = (service.get("status") or {}).get("components") or {}
    entries = components.get("predictor", {}).get("traffic") or []
    others = [entry for entry in entries if entry.get("revisionName") != revision and entry.get("percent")]
    return f"{others[0]['revisionName']} still receives {others[0]['percent']} % of the traffic" if others else ""


def _service_pending(service: Manifest, target: Target) -> str:
    status = service.get("status") or {}
    if target.canary:
        entries = {entry["name"]: entry for entry in status.get("canaryStatuses") or []}
        if not entries.get(target.canary, {}).get("ready"):
            return f"canary {target.canary} is not ready"
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    for kind in ("Ready", "IngressReady"):
        if (condition := conditions.get(kind, {})).get("status") != "True":
            return " ".join(filter(None, [f"{kind} is not True", condition.get("reason"), condition.get("message")]))
    return "" if (status.get("address") or {}).get("url") else "status.address is not set"


def _pods(cluster: Cluster, target: Target) -> list[Manifest]:
    """Returns the pods of the revision, without those of older revisions."""
    pods = cluster.list("v1", "Pod", labels=f"serving.kserve.io/inferenceservice={target.name}")
    return [pod for pod in pods if not target.revision or _revision_annotation(pod) == target.revision]


def _revision_annotation(thing: Manifest) -> str:
    return annotations(thing).get(REVISION, "")


def _unscheduled(pods: list[Manifest]) -> bool:
    conditions = [condition for pod in pods for condition in (pod.get("status") or {}).get("conditions") or []]
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in conditions)


def _log_excerpt(cluster: Cluster, finding: Finding) -> str:
    if not finding.pod:
        return ""
    log = cluster.log(finding.pod, finding.container, previous=finding.previous)
    return f"{hint(log)}. The end of the log of {finding.container} in {finding.pod}:\n{log}"


def _newest_log(cluster: Cluster, pods: list[Manifest]) -> str:
    newest = max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), default=None)
    if newest is None:
        return " It has no pods."
    name = newest["metadata"]["name"]
    running = [
        state["name"]
        for states in ("initContainerStatuses", "containerStatuses")
        for state in (newest.get("status") or {}).get(states) or []
        if "running" in (state.get("state") or {})
    ]
    container = running[0] if running else SERVER
    return f" The end of the log of {container} in {name}:\n{cluster.log(name, container)}"
