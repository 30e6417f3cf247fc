"""Canary releases: a share of the traffic, or a candidate service, as the installed KServe supports them."""

import time
from collections.abc import Callable

from llm_finetune.components.serving.vllm_serve.kserve import rollback, rollout
from llm_finetune.components.serving.vllm_serve.kserve.cluster import ApiError, Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.manifests import MODE, MODES
from llm_finetune.components.serving.vllm_serve.kserve.preflight import PreflightResult
from llm_finetune.components.serving.vllm_serve.kserve.release import (
    Outcome,
    Release,
    address,
    deploy,
    replace_service,
)
from llm_finetune.components.serving.vllm_serve.kserve.rollout import API, KIND
from llm_finetune.components.shared.errors import UserError

GATEWAY = "gateway.networking.k8s.io/v1"
TAGS = "serving.kserve.io/enable-tag-routing"


def choose(
    cluster: Cluster, name: str, percent: int, candidate: bool, found: PreflightResult
) -> Callable[[Release], Outcome]:
    """Chooses how to release a revision.

    Args:
        cluster: The cluster.
        name: Name of the InferenceService.
        percent: Share of the traffic for the new revision in percent; 0 for all of it.
        candidate: Whether to use a candidate service if traffic cannot be split.
        found: Result of the preflight.

    Returns:
        The function that performs the release.

    Raises:
        UserError: If the cluster cannot split traffic.
    """
    if percent and found.existing is None:
        raise UserError(
            f"canary_percent = {percent}, but InferenceService {name} does not exist. Deploy the first revision with "
            "canary_percent = 0"
        )
    if percent:
        why = _no_split_reason(cluster, name, found)
        if not why:
            knative = MODES.get(found.mode) == "Knative"
            return lambda release: (_knative if knative else _gateway)(release, percent)
        if not candidate:
            raise UserError(
                f"canary_percent = {percent}: {why}. KServe would ignore the setting, so nothing was changed. Set "
                "canary_percent = 0 and candidate_first = True to test the model in a separate service first, or use "
                "deployment_mode = Knative with another deployment_name"
            )
        print(f"{why}: testing the model in a candidate service instead of canary_percent = {percent}", flush=True)
    return candidate_then_replace if candidate else replace_service


def _no_split_reason(cluster: Cluster, name: str, found: PreflightResult) -> str:
    """Returns why this cluster cannot split traffic, or an empty string."""
    if MODES.get(found.mode) == "Knative":
        return ""
    if not found.features.canary:
        return f"KServe {found.features.generation} cannot split traffic in mode Standard"
    try:
        if cluster.serves(GATEWAY, "HTTPRoute") and _route(cluster, name):
            return ""
    except ApiError:
        return f"no permission to read the HTTPRoute of {name}, which shows whether KServe splits traffic"
    return "in mode Standard, KServe splits traffic with the Gateway API only (enableGatewayApi), which is not enabled"


def with_predictor_name(manifest: Manifest, existing: Manifest | None, revision: str) -> Manifest:
    """Returns the manifest with the name of the predictor, which is part of the name of its Deployment.

    A promoted canary keeps its name. A canary of the same revision becomes the predictor and keeps its pods.

    Args:
        manifest: The InferenceService to apply.
        existing: The InferenceService in the cluster, if it exists.
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
    """Deploys and tests `<name>-candidate`, deletes it, and replaces the service."""
    name = f"{release.name}-candidate"
    metadata = release.manifest["metadata"] | {"name": name}
    predictor = {"minReplicas": 1, "maxReplicas": 1}
    manifest = _with_predictor(release.manifest | {"metadata": metadata}, predictor)
    # A candidate of an interrupted run is replaced.
    trial = release.as_service(name, manifest, None)
    with trial.with_rollback():
        deploy(trial)
        # The service needs its accelerators.
        rollback.remove(release.cluster, name, release.timeouts)
    print(f"candidate {name} passed the test prompts and was deleted", flush=True)
    return replace_service(release)


def _knative(release: Release, percent: int) -> Outcome:
    """Deploys the revision without traffic, tests it at its tag URL, and then sets its share of the traffic."""
    dark = _with_predictor(release.manifest, {rollback.CANARY_SHARE: 0})
    dark = dark | {"metadata": dark["metadata"] | {"annotations": dark["metadata"]["annotations"] | {TAGS: "true"}}}
    with release.with_rollback():
        target = release.target()
        release.apply(dark)
        service = release.wait(target)
        service = _wait_for(release, service, "a tag URL for the new revision", lambda seen: _tagged(seen) is not None)
        answers = release.ask(address(_tagged(service) or ""))
        shared = _with_predictor(dark, {rollback.CANARY_SHARE: percent})
        release.cluster.apply(shared)
        service = _wait_for(
            release, service, f"{percent} % of the traffic", lambda seen: percent in _shares(seen).values()
        )  # fmt: skip
    return Outcome(service, address(service["status"]["address"]["url"]), answers, f"{percent} % of the traffic")


def _gateway(release: Release, percent: int) -> Outcome:
    """Adds the revision as a canary without traffic, tests it, and then sets its share of the traffic."""
    existing = release.existing
    assert existing is not None
    canary = f"r{release.revision[:10]}"
    predictor = release.manifest["spec"]["predictor"] | {"name": canary}
    predictor["model"] = predictor["model"] | {"name": ""}  # Required by the schema of a canary; KServe sets it.
    own = rollback.applied_fields(existing)
    if "spec" not in own:
        raise UserError(f"{KIND} {release.name} was not applied by this card, so no canary can be added to it")

    def with_share(share: int) -> Manifest:
        return own | {"spec": own["spec"] | {"canary": [{"predictor": predictor, "trafficPercent": share}]}}

    release = release.as_canary(canary)
    with release.with_rollback():
        target = release.target()
        release.apply(with_share(0))
        service = release.wait(target)
        url = service["status"]["address"]["url"]
        main = rollout.workload_name(service)
        answers = release.ask(address(url.replace(main, rollout.workload_name(service, canary), 1)))
        release.cluster.apply(with_share(percent))
        backend = rollout.workload_name(service, canary)
        _wait_for(
            release, service,
            f"{percent} % of the traffic in the HTTPRoute; this version of KServe runs the canary without traffic",
            lambda _: _weights(release.cluster, release.name).get(backend) == percent,
        )  # fmt: skip
    return Outcome(service, address(url), answers, f"{percent} % of the traffic")


def _wait_for(release: Release, service: Manifest, what: str, reached: Callable[[Manifest], bool]) -> Manifest:
    deadline = time.monotonic() + release.timeouts.settle
    while not reached(service):
        if time.monotonic() > deadline:
            raise UserError(f"{KIND} {release.name} did not get {what} within {release.timeouts.settle:.0f} s")
        release.cluster.wait_for_change(service, release.timeouts.poll)
        service = release.cluster.get(API, KIND, release.name) or service
    return service


def _traffic(service: Manifest) -> list[Manifest]:
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


def check_with_dry_run(cluster: Cluster, manifest: Manifest, existing: Manifest | None) -> Manifest:
    """Validates a manifest with a server-side dry run.

    KServe's webhook requires the annotation of the deployment mode to equal the mode in the status. After an upgrade of
    KServe, the status may still have the old spelling of the mode.

    Args:
        cluster: The cluster.
        manifest: The manifest to apply.
        existing: The InferenceService in the cluster, if it exists.

    Returns:
        The manifest, with the spelling of the mode that the webhook accepts.

    Raises:
        UserError: If the API rejects the manifest.
    """
    try:
        cluster.apply(manifest, dry_run=True)
        return manifest
    except ApiError as error:
        shown = ((existing or {}).get("status") or {}).get("deploymentMode", "")
        metadata = manifest["metadata"]
        if "deploymentMode" not in str(error) or shown in ("", metadata["annotations"][MODE]):
            raise
    manifest = manifest | {"metadata": metadata | {"annotations": metadata["annotations"] | {MODE: shown}}}
    cluster.apply(manifest, dry_run=True)
    return manifest
