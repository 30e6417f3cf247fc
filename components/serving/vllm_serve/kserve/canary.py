"""Gives a new revision a share of the traffic, or tries it out beside the old one, as far as this KServe can."""

import time
from collections.abc import Callable
from typing import Any

from llm_finetune.components.serving.vllm_serve.kserve import rollback, rollout
from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster, Manifest, Refused
from llm_finetune.components.serving.vllm_serve.kserve.manifests import MODE
from llm_finetune.components.serving.vllm_serve.kserve.preflight import Found
from llm_finetune.components.serving.vllm_serve.kserve.release import (
    Outcome,
    Release,
    address,
    bring_up,
    replace_service,
)
from llm_finetune.components.serving.vllm_serve.kserve.rollout import API, KIND
from llm_finetune.components.shared.errors import UserError

GATEWAY = "gateway.networking.k8s.io/v1"
TAGS = "serving.kserve.io/enable-tag-routing"


def choose(cluster: Cluster, name: str, percent: int, candidate: bool, found: Found) -> Callable[[Release], Outcome]:
    """Chooses how a new revision is brought in.

    Args:
        cluster: Where.
        name: The InferenceService.
        percent: Share of the traffic for the new revision; 0 for all of it.
        candidate: Whether a candidate service is wanted where no share can be given.
        found: What the preflight found.

    Returns:
        The function that does it.

    Raises:
        UserError: If this KServe would ignore the share.
    """
    if percent and found.existing is None:
        raise UserError(
            f"canary_percent = {percent}, but nothing is deployed as {name} to share the traffic with. Deploy the "
            "first revision with canary_percent = 0"
        )
    if percent:
        why = _no_share(cluster, name, found)
        if not why:
            knative = rollout.MODES.get(found.mode) == "Knative"
            return lambda release: (_knative if knative else _gateway)(release, percent)
        if not candidate:
            raise UserError(
                f"canary_percent = {percent}: {why}; KServe would ignore the share in silence, so nothing was changed. "
                "Set canary_percent = 0 and candidate_first = True to try the model in a service of its own first, or "
                "use deployment_mode = Knative under another deployment_name"
            )
        print(
            f"{why}: the model is tried in a candidate service instead of taking {percent} % of the traffic", flush=True
        )
    return candidate_then_replace if candidate else replace_service


def _no_share(cluster: Cluster, name: str, found: Found) -> str:
    """Returns why this KServe cannot split traffic, or nothing."""
    if rollout.MODES.get(found.mode) == "Knative":
        return ""
    if not found.features.canary:
        return f"KServe {found.features.generation} cannot split traffic in mode Standard"
    try:
        if cluster.knows(GATEWAY, "HTTPRoute") and _route(cluster, name):
            return ""
    except Refused:
        return f"this identity may not read the HTTPRoute of {name}, which would tell whether KServe splits traffic"
    return (
        "KServe splits traffic in mode Standard only with the Gateway API (enableGatewayApi), which is not in use here"
    )


def with_name(manifest: Manifest, existing: Manifest | None, revision: str) -> Manifest:
    """Returns the manifest with the predictor's name as it has to be.

    A predictor that was a canary once keeps the name, which is part of its Deployment's. A canary that serves the same
    revision becomes the predictor under its name, and its pods go on.

    Args:
        manifest: The InferenceService to apply.
        existing: The one in the cluster, if any.
        revision: The revision of the manifest.
    """
    spec = (existing or {}).get("spec") or {}
    promoted = [
        entry["predictor"]["name"]
        for entry in spec.get("canary") or []
        if rollout.revision_of({"spec": {"predictor": entry["predictor"]}}) == revision
    ]
    name = (promoted or [(spec.get("predictor") or {}).get("name")])[0]
    return _with_predictor(manifest, {"name": name}) if name else manifest


def candidate_then_replace(release: Release) -> Outcome:
    """Deploys `<name>-candidate`, asks it, removes it, and only then touches the real service."""
    name = f"{release.name}-candidate"
    metadata = release.manifest["metadata"] | {"name": name}
    predictor = {"minReplicas": 1, "maxReplicas": 1}
    manifest = _with_predictor(release.manifest | {"metadata": metadata}, predictor)
    # One that an interrupted run left behind is taken over, and goes like a new one.
    trial = release.under(name, manifest, None)
    with trial.guarded():
        bring_up(trial)
        # Its accelerators are wanted for the real one.
        rollback.remove(release.cluster, name, release.pace)
    print(f"candidate {name} answered and was removed", flush=True)
    return replace_service(release)


def _knative(release: Release, percent: int) -> Outcome:
    """Brings the revision up without traffic, asks it at its own address, then gives it its share."""
    dark = _with_predictor(release.manifest, {rollback.CANARY_SHARE: 0})
    dark = dark | {"metadata": dark["metadata"] | {"annotations": dark["metadata"]["annotations"] | {TAGS: "true"}}}
    with release.guarded():
        target = release.target()
        release.apply(dark)
        service = release.wait(target)
        service = _until(release, service, "the address of the new revision", lambda seen: _tagged(seen) is not None)
        answers = release.ask(address(_tagged(service) or ""))
        shared = _with_predictor(dark, {rollback.CANARY_SHARE: percent})
        release.cluster.apply(shared)
        service = _until(
            release, service, f"{percent} % of the traffic", lambda seen: percent in _shares(seen).values()
        )  # fmt: skip
    return Outcome(service, address(service["status"]["address"]["url"]), answers, f"{percent} % of the traffic")


def _gateway(release: Release, percent: int) -> Outcome:
    """Adds the revision as a canary of the running service: dark, asked, then with its share."""
    existing = release.existing
    assert existing is not None
    canary = f"r{release.revision[:10]}"
    predictor = release.manifest["spec"]["predictor"] | {"name": canary}
    predictor["model"] = predictor["model"] | {"name": ""}  # The schema wants it in a canary, and KServe sets it.
    own = rollback.own_fields(existing)
    if "spec" not in own:
        raise UserError(f"{KIND} {release.name} was not applied by this card, which does not add a canary to it")

    def with_share(share: int) -> Manifest:
        return own | {"spec": own["spec"] | {"canary": [{"predictor": predictor, "trafficPercent": share}]}}

    release = release.as_canary(canary)
    with release.guarded():
        target = release.target()
        release.apply(with_share(0))
        service = release.wait(target)
        url = service["status"]["address"]["url"]
        main = rollout.workload_name(service)
        answers = release.ask(address(url.replace(main, rollout.workload_name(service, canary), 1)))
        release.cluster.apply(with_share(percent))
        backend = rollout.workload_name(service, canary)
        _until(
            release, service,
            f"{percent} % of the traffic in the HTTPRoute; this KServe runs the canary without traffic",
            lambda _: _weights(release.cluster, release.name).get(backend) == percent,
        )  # fmt: skip
    return Outcome(service, address(url), answers, f"{percent} % of the traffic")


def _until(release: Release, service: Manifest, what: str, reached: Callable[[Manifest], bool]) -> Manifest:
    deadline = time.monotonic() + release.pace.settle
    while not reached(service):
        if time.monotonic() > deadline:
            raise UserError(f"{KIND} {release.name} did not get {what} within {release.pace.settle:.0f} s")
        release.cluster.changed(service, release.pace.poll)
        service = release.cluster.get(API, KIND, release.name) or service
    return service


def _traffic(service: Manifest) -> list[dict[str, Any]]:
    return list((service["status"].get("components") or {}).get("predictor", {}).get("traffic") or [])


def _tagged(service: Manifest) -> str | None:
    return next(
        (entry["url"] for entry in _traffic(service) if entry.get("tag") == "latest" and entry.get("url")), None
    )


def _shares(service: Manifest) -> dict[str, int]:
    newest = (service["status"].get("components") or {}).get("predictor", {}).get("latestReadyRevision")
    return {e["revisionName"]: e.get("percent") or 0 for e in _traffic(service) if e.get("revisionName") == newest}


def _route(cluster: Cluster, name: str) -> Manifest | None:
    return cluster.get(GATEWAY, "HTTPRoute", name) or cluster.get(GATEWAY, "HTTPRoute", f"{name}-predictor")


def _weights(cluster: Cluster, name: str) -> dict[str, int]:
    rules = ((_route(cluster, name) or {}).get("spec") or {}).get("rules") or []
    return {ref["name"]: ref.get("weight", 1) for rule in rules for ref in rule.get("backendRefs") or []}


def _with_predictor(manifest: Manifest, fields: Manifest) -> Manifest:
    spec = manifest["spec"]
    return manifest | {"spec": spec | {"predictor": spec["predictor"] | fields}}


def accepted(cluster: Cluster, manifest: Manifest, existing: Manifest | None) -> Manifest:
    """Lets the API, its webhooks and other owners refuse a manifest before anything is changed.

    KServe's webhook compares the mode's annotation with the mode in the status. Where an older KServe has left another
    spelling of the same mode, the status' one is the only one that it takes.

    Args:
        cluster: Where.
        manifest: What will be applied.
        existing: The InferenceService in the cluster, if any.

    Returns:
        The manifest, as it is or with the mode spelt as the webhook wants it.

    Raises:
        UserError: If it is refused.
    """
    try:
        cluster.apply(manifest, dry_run=True)
        return manifest
    except Refused as refused:
        shown = ((existing or {}).get("status") or {}).get("deploymentMode", "")
        metadata = manifest["metadata"]
        if "deploymentMode" not in str(refused) or shown in ("", metadata["annotations"][MODE]):
            raise
    manifest = manifest | {"metadata": metadata | {"annotations": metadata["annotations"] | {MODE: shown}}}
    cluster.apply(manifest, dry_run=True)
    return manifest
