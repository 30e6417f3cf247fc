"""Looks at the cluster before anything is changed: everything that is missing, each with its fix, in one message."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llm_finetune.components.serving.vllm_serve.kserve import resources, rollout, storage
from llm_finetune.components.serving.vllm_serve.kserve.cluster import Cluster, Manifest, Refused
from llm_finetune.components.serving.vllm_serve.kserve.manifests import MODE, Deployment
from llm_finetune.components.serving.vllm_serve.kserve.rollout import API, KIND
from llm_finetune.components.shared.engine.storage_uris import Storage
from llm_finetune.components.shared.errors import UserError

GROUP, VERSION = API.split("/")
RUNTIME_API = "serving.kserve.io/v1alpha1"
OLD_SPELLING = {"Standard": "RawDeployment", "Knative": "Serverless"}
RIGHTS = [
    *((verb, GROUP, "inferenceservices", "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    ("get", "apps", "deployments", ""),
    ("list", "", "pods", ""),
    ("get", "", "pods", "log"),
    ("list", "", "events", ""),
]
KNATIVE_RIGHTS = [("get", "serving.knative.dev", "services", ""), ("get", "serving.knative.dev", "revisions", "")]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Features:
    """What the installed KServe can do, read from the schema that it publishes.

    Attributes:
        generation: `0.15`, `0.16 to 0.19`, `0.20 or newer`, or `unknown`.
        canary: Whether `spec.canary` exists.
        storage_uris: Whether a predictor can have several models.
    """

    generation: str = "unknown"
    canary: bool = False
    storage_uris: bool = False


@dataclass
class Found:
    """What the preflight found.

    Attributes:
        features: Of KServe.
        existing: The InferenceService, if it is there already.
        image: The runtime's image; empty where it may not be read.
        mode: Deployment mode as this KServe and this InferenceService spell it.
        notes: What could not be checked, and why that matters.
    """

    features: Features
    existing: Manifest | None = None
    image: str = ""
    mode: str = "Standard"
    notes: list[str] = field(default_factory=list)


def check(cluster: Cluster, deployment: Deployment, model: Storage, secret: str = "") -> Found:
    """Checks everything that a deployment needs.

    Args:
        cluster: Where.
        deployment: What is to be deployed.
        model: Where the model lies.
        secret: Secret with the store's keys; empty takes whichever of the service account's fits.

    Returns:
        What the deployment has to adapt to.

    Raises:
        UserError: Naming everything that is missing, each with its fix.
    """
    if not cluster.knows(API, KIND):
        raise UserError(
            f"the cluster knows no {KIND} ({API}): KServe is not installed. Install 0.15 or newer "
            "(https://kserve.github.io/website), or use target = manifest"
        )
    wanted = rollout.MODES[deployment.mode]
    lacking = list(_rights(cluster, wanted))
    if lacking:
        # Without them, every other check would only repeat the same refusal.
        raise UserError(_all(cluster, lacking))
    found = Found(features(cluster))
    found.existing = cluster.get(API, KIND, deployment.name)
    problems = list(_mode(cluster, deployment, found, wanted))
    problems += _runtime(cluster, deployment, found)
    problems += readable(
        found, "service account and secrets", lambda: storage.check(cluster, deployment, model, secret)
    )
    problems += readable(found, "nodes", lambda: resources.nodes(cluster, deployment))
    problems += readable(found, "quota", lambda: resources.quota(cluster, deployment, found.existing))
    for note in found.notes:
        print(f"preflight: {note}", flush=True)
    if problems:
        raise UserError(_all(cluster, problems))
    return found


def features(cluster: Cluster) -> Features:
    """Reads from the live schema what the installed KServe can do."""
    try:
        spec = cluster.schema(GROUP, VERSION, KIND).get("properties", {}).get("spec", {}).get("properties", {})
    except Refused:
        return Features()
    if not spec:
        return Features()
    canary = "canary" in spec
    several = "storageUris" in spec.get("predictor", {}).get("properties", {})
    generation = "0.20 or newer" if canary else "0.16 to 0.19" if several else "0.15"
    return Features(generation, canary, several)


def readable(found: Found, what: str, look: Callable[[], tuple[list[str], list[str]]]) -> list[str]:
    """Runs a check that needs rights of its own; without them it becomes a note.

    Args:
        found: Where notes are kept.
        what: What is looked at.
        look: Returns problems and notes.

    Returns:
        The problems.
    """
    try:
        problems, notes = look()
    except Refused as refused:
        if refused.status != 403:
            raise
        found.notes.append(f"{what} not checked, this identity may not read them")
        return []
    found.notes += notes
    return problems


def _rights(cluster: Cluster, mode: str) -> Iterator[str]:
    missing: dict[str, list[str]] = {}
    for verb, group, resource, sub in RIGHTS + (KNATIVE_RIGHTS if mode == "Knative" else []):
        if not cluster.may(verb, group, resource, sub):
            missing.setdefault("/".join(filter(None, [resource, sub])) + (f".{group}" if group else ""), []).append(
                verb
            )
    if missing:
        listed = "; ".join(f"{', '.join(verbs)} {resource}" for resource, verbs in missing.items())
        yield (
            f"no right to {listed} in namespace {cluster.namespace}. Bind the Role of manifests/base to the run's "
            "service account there; in a multi-user Kubeflow, a run may deploy to its own profile's namespace alone"
        )


def _mode(cluster: Cluster, deployment: Deployment, found: Found, wanted: str) -> Iterator[str]:
    """Chooses the spelling of the mode: the one in force, else the one that this KServe understands."""
    found.mode = OLD_SPELLING[wanted] if found.features.generation == "0.15" else wanted
    if found.features.generation == "unknown":
        found.mode = deployment.mode
        found.notes.append(
            f"KServe's schema cannot be read, so its version is unknown and deployment_mode = {deployment.mode} is "
            "taken as it is (KServe 0.15 knows RawDeployment and Serverless, later ones Standard and Knative)"
        )
    existing = found.existing
    if existing is None:
        pass
    elif (in_force := rollout.mode_of(existing)) != wanted:
        yield (
            f"{KIND} {deployment.name} runs in mode {in_force}, and KServe does not change the mode of an existing "
            f"one. Set deployment_mode = {in_force}, or give another deployment_name"
        )
    else:
        spelt = rollout.annotations(existing).get(MODE) or (existing.get("status") or {}).get("deploymentMode")
        found.mode = spelt or found.mode
    if wanted == "Knative" and not cluster.knows("serving.knative.dev/v1", "Service"):
        yield "deployment_mode = Knative, but Knative Serving is not installed. Install it, or use Standard"


def _runtime(cluster: Cluster, deployment: Deployment, found: Found) -> list[str]:
    runtime = None
    for kind in ("ServingRuntime", "ClusterServingRuntime"):
        try:
            runtime = runtime or cluster.get(RUNTIME_API, kind, deployment.runtime)
        except Refused as refused:
            if refused.status != 403:
                raise
            found.notes.append(f"{kind} {deployment.runtime} not checked, this identity may not read it")
            continue
    if runtime is None:
        if found.notes and any("ServingRuntime" in note for note in found.notes):
            return []
        return [
            f"ServingRuntime {deployment.runtime} does not exist in namespace {cluster.namespace}. Apply it: kubectl "
            f"-n {cluster.namespace} apply -f manifests/base/serving-runtime.yaml (or set `runtime` to the one you use)"
        ]
    spec = runtime["spec"]
    formats = [known["name"] for known in spec.get("supportedModelFormats") or []]
    found.image = next((c["image"] for c in spec["containers"] if c["name"] == "kserve-container"), "")
    if spec.get("disabled"):
        return [f"ServingRuntime {deployment.runtime} is disabled. Enable it, or set `runtime` to another one"]
    if "vLLM" not in formats:
        return [
            f"ServingRuntime {deployment.runtime} serves {', '.join(formats) or 'no format'}, not vLLM. Set `runtime` "
            "to the one of manifests/base/serving-runtime.yaml"
        ]
    return []


def _all(cluster: Cluster, problems: list[str]) -> str:
    listed = problems[0] if len(problems) == 1 else "".join(f"\n  {n}. {p}" for n, p in enumerate(problems, start=1))
    return f"namespace {cluster.namespace} is not ready for this deployment, nothing was changed: {listed}"


def summary(found: Found) -> Mapping[str, Any]:
    """Returns what the preflight found as facts for deployment_info."""
    return {"kserve": found.features.generation, "deployment_mode": found.mode}
