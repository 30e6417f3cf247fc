"""Checks the cluster before a deployment and reports all problems with their fixes in one message."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llm_finetune.components.serving.vllm_serve.kserve import resources, rollout, storage
from llm_finetune.components.serving.vllm_serve.kserve.cluster import ApiError, Cluster, Manifest
from llm_finetune.components.serving.vllm_serve.kserve.manifests import MODE, MODES, Deployment
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


@dataclass(frozen=True)
class Features:
    """Features of the installed KServe, from the schema in its OpenAPI document.

    Attributes:
        generation: `0.15`, `0.16 to 0.19`, `0.20 or newer`, or `unknown`.
        canary: Whether `spec.canary` exists.
        storage_uris: Whether `spec.predictor.storageUris` exists.
    """

    generation: str = "unknown"
    canary: bool = False
    storage_uris: bool = False


@dataclass
class PreflightResult:
    """Result of the preflight.

    Attributes:
        features: Features of the installed KServe.
        existing: The InferenceService, if it exists.
        image: Image of the runtime; empty without permission to read it.
        mode: Deployment mode in the spelling of this KServe and this InferenceService.
        notes: Checks that were not possible, and warnings.
    """

    features: Features
    existing: Manifest | None = None
    image: str = ""
    mode: str = "Standard"
    notes: list[str] = field(default_factory=list)


def check(cluster: Cluster, deployment: Deployment, model: Storage, secret: str = "") -> PreflightResult:
    """Checks the requirements of a deployment.

    Args:
        cluster: The cluster.
        deployment: The deployment.
        model: Storage of the model.
        secret: Secret with the keys of the store; empty for any matching secret of the service account.

    Returns:
        Properties of the cluster that the deployment depends on.

    Raises:
        UserError: All problems, each with its fix.
    """
    if not cluster.serves(API, KIND):
        raise UserError(
            f"the cluster has no {KIND} ({API}): KServe is not installed. Install 0.15 or newer "
            "(https://kserve.github.io/website), or use target = manifest"
        )
    wanted = MODES[deployment.settings.deployment_mode]
    missing = list(_rights(cluster, wanted))
    if missing:
        # All other checks would fail for the same reason.
        raise UserError(_format_problems(cluster, missing))
    found = PreflightResult(features(cluster))
    found.existing = cluster.get(API, KIND, deployment.name)
    problems = list(_mode(cluster, deployment, found, wanted))
    problems += _runtime(cluster, deployment, found)
    problems += run_optional_check(
        found, "service account and secrets", lambda: storage.check(cluster, deployment, model, secret)
    )
    problems += run_optional_check(found, "nodes", lambda: resources.nodes(cluster, deployment))
    problems += run_optional_check(found, "quota", lambda: resources.quota(cluster, deployment, found.existing))
    for note in found.notes:
        print(f"preflight: {note}", flush=True)
    if problems:
        raise UserError(_format_problems(cluster, problems))
    return found


def features(cluster: Cluster) -> Features:
    """Reads the features of the installed KServe from its schema."""
    try:
        spec = cluster.schema(GROUP, VERSION, KIND).get("properties", {}).get("spec", {}).get("properties", {})
    except ApiError:
        return Features()
    if not spec:
        return Features()
    canary = "canary" in spec
    several = "storageUris" in spec.get("predictor", {}).get("properties", {})
    generation = "0.20 or newer" if canary else "0.16 to 0.19" if several else "0.15"
    return Features(generation, canary, several)


def run_optional_check(found: PreflightResult, what: str, look: Callable[[], tuple[list[str], list[str]]]) -> list[str]:
    """Runs a check that needs permissions of its own; without them, it adds a note.

    Args:
        found: Result to which notes are added.
        what: Objects that are checked, for the note.
        look: Returns problems and notes.

    Returns:
        The problems.
    """
    try:
        problems, notes = look()
    except ApiError as error:
        if error.status != 403:
            raise
        found.notes.append(f"{what} not checked: no permission to read them")
        return []
    found.notes += notes
    return problems


def _rights(cluster: Cluster, mode: str) -> Iterator[str]:
    missing: dict[str, list[str]] = {}
    for verb, group, resource, sub in RIGHTS + (KNATIVE_RIGHTS if mode == "Knative" else []):
        if not cluster.is_allowed(verb, group, resource, sub):
            missing.setdefault("/".join(filter(None, [resource, sub])) + (f".{group}" if group else ""), []).append(
                verb
            )
    if missing:
        listed = "; ".join(f"{', '.join(verbs)} {resource}" for resource, verbs in missing.items())
        yield (
            f"no permission to {listed} in namespace {cluster.namespace}. Bind the Role of manifests/base to the "
            "service account of the run there; in multi-user Kubeflow, a run can deploy to the namespace of its "
            "profile only"
        )


def _mode(cluster: Cluster, deployment: Deployment, found: PreflightResult, wanted: str) -> Iterator[str]:
    """Chooses the spelling of the deployment mode: of the existing InferenceService, else of this KServe."""
    found.mode = OLD_SPELLING[wanted] if found.features.generation == "0.15" else wanted
    if found.features.generation == "unknown":
        found.mode = deployment.settings.deployment_mode
        found.notes.append(
            f"KServe's schema cannot be read, so its version is unknown and deployment_mode = {found.mode} is "
            "used unchanged (KServe 0.15 has RawDeployment and Serverless, later versions Standard and Knative)"
        )
    existing = found.existing
    if existing is None:
        pass
    elif (current := rollout.mode_of(existing)) != wanted:
        yield (
            f"{KIND} {deployment.name} has mode {current}, and KServe cannot change the mode of an existing one. "
            f"Set deployment_mode = {current}, or use another deployment_name"
        )
    else:
        spelt = rollout.annotations(existing).get(MODE) or (existing.get("status") or {}).get("deploymentMode")
        found.mode = spelt or found.mode
    if wanted == "Knative" and not cluster.serves("serving.knative.dev/v1", "Service"):
        yield "deployment_mode = Knative, but Knative Serving is not installed. Install it, or use Standard"


def _runtime(cluster: Cluster, deployment: Deployment, found: PreflightResult) -> list[str]:
    runtime, name = None, deployment.settings.runtime
    for kind in ("ServingRuntime", "ClusterServingRuntime"):
        try:
            runtime = runtime or cluster.get(RUNTIME_API, kind, name)
        except ApiError as error:
            if error.status != 403:
                raise
            found.notes.append(f"{kind} {name} not checked: no permission to read it")
            continue
    if runtime is None:
        if found.notes and any("ServingRuntime" in note for note in found.notes):
            return []
        return [
            f"ServingRuntime {name} does not exist in namespace {cluster.namespace}. Apply it: kubectl "
            f"-n {cluster.namespace} apply -f manifests/base/serving-runtime.yaml (or set `runtime` to yours)"
        ]
    spec = runtime["spec"]
    formats = [known["name"] for known in spec.get("supportedModelFormats") or []]
    found.image = next((c["image"] for c in spec["containers"] if c["name"] == "kserve-container"), "")
    if spec.get("disabled"):
        return [f"ServingRuntime {name} is disabled. Enable it, or set `runtime` to another one"]
    if "vLLM" not in formats:
        return [
            f"ServingRuntime {name} serves {', '.join(formats) or 'no format'}, not vLLM. Set `runtime` "
            "to the one of manifests/base/serving-runtime.yaml"
        ]
    return []


def _format_problems(cluster: Cluster, problems: list[str]) -> str:
    listed = problems[0] if len(problems) == 1 else "".join(f"\n  {n}. {p}" for n, p in enumerate(problems, start=1))
    return f"namespace {cluster.namespace} is not ready for this deployment, nothing was changed: {listed}"
