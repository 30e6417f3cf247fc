"""Waits until the pods of one revision serve: that revision, not a Ready left by an older one."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import SERVER, Finding, Pace, findings, hint, progress
from llm_finetune.components.serving.vllm_serve.kserve.manifests import MODE, REVISION, Manifest
from llm_finetune.components.shared.errors import UserError

API, KIND = "serving.kserve.io/v1beta1", "InferenceService"
# KServe 0.16 renamed the modes; both spellings are in use.
MODES = {"RawDeployment": "Standard", "Serverless": "Knative", "Standard": "Standard", "Knative": "Knative"}


class Superseded(UserError):
    """Somebody else changed the deployment while it was waited for; it is theirs now."""


@dataclass(frozen=True)
class Target:
    """What is waited for.

    Attributes:
        name: The InferenceService.
        revision: The hash that its new pods carry; empty takes any.
        canary: Name of the canary entry whose pods are meant, empty for the predictor itself.
        before: The InferenceService before the change, if there was one.
        workload_before: Generation of the Deployment before the change, where the change alters the pods without a
            new revision; 0 otherwise.
    """

    name: str
    revision: str = ""
    canary: str = ""
    before: Mapping[str, Any] | None = None
    workload_before: int = 0


@dataclass
class _Seen:
    """One look at the cluster."""

    service: Manifest
    lacks: str
    workload: Manifest | None = None
    pods: list[Manifest] = field(default_factory=list)


def mode_of(service: Mapping[str, Any]) -> str:
    """Returns the deployment mode that an InferenceService runs in, in today's spelling."""
    spelt = (service.get("status") or {}).get("deploymentMode") or annotations(service).get(MODE) or "Standard"
    return MODES.get(spelt, spelt)


def annotations(service: Mapping[str, Any]) -> dict[str, str]:
    """Returns an object's annotations."""
    return dict((service.get("metadata") or {}).get("annotations") or {})


def revision_of(service: Mapping[str, Any], canary: str = "") -> str:
    """Returns the revision that an InferenceService asks for, in its predictor or in a canary entry."""
    spec = service.get("spec") or {}
    predictors = [spec.get("predictor") or {}]
    if canary:
        entries = [entry["predictor"] for entry in spec.get("canary") or []]
        predictors = [entry for entry in entries if entry.get("name") == canary]
    return str((predictors[0].get("annotations") or {}).get(REVISION, "")) if predictors else ""


def workload_name(service: Mapping[str, Any], canary: str = "") -> str:
    """Returns the name of the Deployment, Service and Knative Service of a predictor."""
    own = canary or ((service.get("spec") or {}).get("predictor") or {}).get("name") or ""
    return "-".join(filter(None, [service["metadata"]["name"], own, "predictor"]))


def wait(cluster: Cluster, target: Target, pace: Pace) -> Manifest:
    """Waits until the pods of a revision serve.

    Args:
        cluster: Where.
        target: What.
        pace: How long.

    Returns:
        The ready InferenceService.

    Raises:
        Superseded: If another revision was applied meanwhile.
        UserError: If it cannot work, or the time is up; with the end of the log of the container concerned.
    """
    begun, said, first = time.monotonic(), "", dict[str, tuple[float, int]]()
    while True:
        seen, now = look(cluster, target, time.monotonic() - begun < pace.settle), time.monotonic()
        if not seen.lacks:
            return seen.service
        events = cluster.list("v1", "Event", fields="reason=NotTriggerScaleUp") if _unscheduled(seen.pods) else []
        found = findings(seen.service, target.before, seen.workload, seen.pods, events, pace)
        first = {f.key: (first.get(f.key, (now, 0))[0], first.get(f.key, (now, 0))[1] + 1) for f in found}
        for finding in found:
            since, looks = first[finding.key]
            if looks >= finding.looks and now - since >= finding.seconds:
                raise UserError(f"{KIND} {target.name} cannot work: {finding.text}{_words(cluster, finding)}")
        doing = "; ".join(filter(None, [progress(seen.pods), *(f.text for f in found)])) or seen.lacks
        if doing != said:
            said = doing
            print(f"waiting for {target.name}, {now - begun:.0f} s: {doing}", flush=True)
        if now - begun > pace.ready:
            raise UserError(
                f"{KIND} {target.name} was not ready after {pace.ready:.0f} s ({doing}; {seen.lacks}). Raise "
                f"`ready_timeout` if it was still loading.{_newest_log(cluster, seen.pods)}"
            )
        cluster.changed(seen.service, pace.poll)


def look(cluster: Cluster, target: Target, settling: bool = False) -> _Seen:
    """Reads a rollout once.

    Args:
        cluster: Where.
        target: What.
        settling: Whether a Deployment as old as the change is not taken for the new one yet.
    """
    service = cluster.get(API, KIND, target.name)
    if service is None:
        raise Superseded(f"{KIND} {target.name} was deleted by someone else while it was being waited for")
    asked = revision_of(service, target.canary)
    if target.revision and asked != target.revision:
        raise Superseded(
            f"{KIND} {target.name} was changed by someone else while it was being waited for: it asks for revision "
            f"{asked or '(none)'} now, not {target.revision}. It was left as it is"
        )
    look_at = _knative if mode_of(service) == "Knative" else _deployment
    seen = look_at(cluster, service, target, settling)
    seen.lacks = seen.lacks or _service_lacks(service, target)
    return seen


def _deployment(cluster: Cluster, service: Manifest, target: Target, settling: bool) -> _Seen:
    found = cluster.get("apps/v1", "Deployment", workload_name(service, target.canary))
    if found is None or (target.revision and _carried(found["spec"]["template"]) != target.revision):
        return _Seen(service, "KServe has not taken up the change yet")
    pods, status = _pods(cluster, target), found.get("status") or {}
    generation, wanted = found["metadata"].get("generation", 0), found["spec"].get("replicas", 1)
    if settling and target.workload_before and generation <= target.workload_before:
        return _Seen(service, "KServe has not taken up the change yet", found, pods)
    if status.get("observedGeneration", 0) < generation:
        return _Seen(service, "the Deployment is being read", found, pods)
    counts = [status.get(key, 0) for key in ("updatedReplicas", "availableReplicas", "replicas")]
    lacks = f"{counts[0]} of {wanted} new pods made, {counts[1]} available, {counts[2]} in all"
    return _Seen(service, "" if counts == [wanted] * 3 else lacks, found, pods)


def _knative(cluster: Cluster, service: Manifest, target: Target, settling: bool) -> _Seen:
    del settling  # A change of a Knative Service always makes a new revision.
    found = cluster.get("serving.knative.dev/v1", "Service", workload_name(service, target.canary))
    status = (found or {}).get("status") or {}
    created, ready = status.get("latestCreatedRevisionName", ""), status.get("latestReadyRevisionName", "")
    revision = cluster.get("serving.knative.dev/v1", "Revision", created) if created else None
    if found is None or revision is None or (target.revision and _carried(revision) != target.revision):
        return _Seen(service, "KServe has not taken up the change yet")
    pods, lacks = _pods(cluster, target), ""
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0) or created != ready:
        lacks = f"Knative revision {created} is not ready, {ready or 'none'} is"
    elif "canaryTrafficPercent" not in service["spec"]["predictor"]:
        lacks = _traffic_lacks(service, created)
    return _Seen(service, lacks, revision, pods)


def _traffic_lacks(service: Manifest, revision: str) -> str:
    """Returns whether an earlier revision still has a share of the traffic, as after a canary."""
    components = (service.get("status") or {}).get("components") or {}
    entries = components.get("predictor", {}).get("traffic") or []
    others = [entry for entry in entries if entry.get("revisionName") != revision and entry.get("percent")]
    return f"{others[0]['revisionName']} still has {others[0]['percent']} % of the traffic" if others else ""


def _service_lacks(service: Manifest, target: Target) -> str:
    status = service.get("status") or {}
    if target.canary:
        entries = {entry["name"]: entry for entry in status.get("canaryStatuses") or []}
        if not entries.get(target.canary, {}).get("ready"):
            return f"canary {target.canary} is not ready"
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    for kind in ("Ready", "IngressReady"):
        if (condition := conditions.get(kind, {})).get("status") != "True":
            return " ".join(filter(None, [f"{kind} is not True", condition.get("reason"), condition.get("message")]))
    return "" if (status.get("address") or {}).get("url") else "no address yet"


def _pods(cluster: Cluster, target: Target) -> list[Manifest]:
    """Returns the pods of the revision alone: those of an older one may well be healthy, or broken."""
    pods = cluster.list("v1", "Pod", labels=f"serving.kserve.io/inferenceservice={target.name}")
    return [pod for pod in pods if not target.revision or _carried(pod) == target.revision]


def _carried(thing: Mapping[str, Any]) -> str:
    return annotations(thing).get(REVISION, "")


def _unscheduled(pods: list[Manifest]) -> bool:
    conditions = [condition for pod in pods for condition in (pod.get("status") or {}).get("conditions") or []]
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in conditions)


def _words(cluster: Cluster, finding: Finding) -> str:
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
