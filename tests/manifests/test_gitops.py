"""Argo CD and Flux point at what is there, may touch what it builds, and tell health as the objects do."""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime  # the version that Argo CD runs health checks in
from manifests.kustomize import FITTING, MANIFESTS, OVERLAYS, Manifest, build, compose, named, of_kind
from manifests.policies import CLUSTER_WIDE

from llm_finetune.components.serving.vllm_serve.settings import Settings

READY = {"type": "Ready", "status": "True"}
WAITING = {"type": "Ready", "status": "False", "message": "Deployment is not available"}


def applications() -> list[Manifest]:
    folders = ("argocd", "argocd/apps", "argocd/serving")
    return of_kind([manifest for folder in folders for manifest in build(MANIFESTS / folder)], "Application")


def kustomizations() -> list[Manifest]:
    return of_kind([*build(MANIFESTS / "flux"), *build(MANIFESTS / "flux/serving")], "Kustomization")


def project(name: str) -> dict[str, Any]:
    return dict(named(build(MANIFESTS / "argocd"), "AppProject", name)["spec"])


def kinds_of(manifests: Iterable[Manifest]) -> set[tuple[str, str]]:
    return {(manifest["apiVersion"].rpartition("/")[0], manifest["kind"]) for manifest in manifests}


def listed(entries: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(entry["group"], entry["kind"]) for entry in entries}


def test_every_application_points_at_a_kustomization_and_a_tag() -> None:
    found, flux = applications(), kustomizations()
    paths = [a["spec"]["source"]["path"] for a in found] + [k["spec"]["path"].removeprefix("./") for k in flux]
    assert all((MANIFESTS.parent / path / "kustomization.yaml").is_file() for path in paths)
    assert {path for path in paths if "apps" not in path} == {
        "manifests/overlays/gke",
        "manifests/kfp",
        "manifests/serving/plain",
    }
    sources = [application["spec"]["source"] for application in found]
    for name in ("llm-finetune", "llm-finetune-root"):
        assert {source["repoURL"] for source in sources} == set(project(name)["sourceRepos"])
    tags = {source["targetRevision"] for source in sources}
    tags |= {source["spec"]["ref"]["tag"] for source in of_kind(build(MANIFESTS / "flux"), "GitRepository")}
    assert tags == {f"v{version('llm-finetune')}"}


def test_waves_bring_the_platform_first() -> None:
    waves = {
        application["metadata"]["name"].removeprefix("llm-finetune-"): int(notes["argocd.argoproj.io/sync-wave"])
        for application in applications()
        if "argocd.argoproj.io/sync-wave" in (notes := application["metadata"].get("annotations", {}))
    }
    assert sorted(waves, key=waves.__getitem__) == ["platform", "pipeline", "serving"]
    after = {k["metadata"]["name"]: k["spec"].get("dependsOn") for k in kustomizations()}
    platform = [{"name": "llm-finetune-platform"}]
    assert after == {platform[0]["name"]: None, "llm-finetune-pipeline": platform, "llm-finetune-serving": platform}


def test_a_model_is_served_from_git_only_where_somebody_says_so() -> None:
    """The example takes a GPU, and whoever owns a deployment's name shuts runs out of it."""
    default = {a["metadata"]["name"] for a in of_kind(build(MANIFESTS / "argocd/apps"), "Application")}
    default |= {k["metadata"]["name"] for k in of_kind(build(MANIFESTS / "flux"), "Kustomization")}
    assert default == {"llm-finetune-platform", "llm-finetune-pipeline"}
    example = of_kind(build(MANIFESTS / "serving/plain"), "InferenceService")[0]["metadata"]["name"]
    assert example != Settings().deployment_name


def test_project_allows_what_the_folders_build_and_no_more(tmp_path: Path) -> None:
    allowed = project("llm-finetune")
    built = [
        *(m for o in OVERLAYS for m in compose(tmp_path / o, f"overlays/{o}", FITTING[o])),
        *build(MANIFESTS / "serving/autoscaled"),
    ]
    ours = [manifest for manifest in built if manifest["kind"] not in CLUSTER_WIDE]
    kinds = kinds_of(ours) | {("pipelines.kubeflow.org", "Pipeline"), ("pipelines.kubeflow.org", "PipelineVersion")}
    assert listed(allowed["namespaceResourceWhitelist"]) == kinds
    assert allowed["clusterResourceWhitelist"] == []
    assert {m["metadata"]["namespace"] for m in ours} == {entry["namespace"] for entry in allowed["destinations"]}


def test_only_the_root_reaches_argo_cd_and_only_with_applications() -> None:
    made = [*build(MANIFESTS / "argocd/apps"), *build(MANIFESTS / "argocd/serving")]
    root = project("llm-finetune-root")
    assert listed(root["namespaceResourceWhitelist"]) == kinds_of(made) == {("argoproj.io", "Application")}
    assert root["clusterResourceWhitelist"] == []
    assert {entry["namespace"] for entry in root["destinations"]} == {m["metadata"]["namespace"] for m in made}
    for application in applications():
        spec = application["spec"]
        assert (spec["project"] == "llm-finetune-root") == (spec["destination"]["namespace"] == "argocd")
        assert spec["destination"] in project(spec["project"])["destinations"]


def test_volumes_and_old_pipeline_versions_are_never_pruned() -> None:
    prune = {a["metadata"]["name"]: a["spec"]["syncPolicy"]["automated"]["prune"] for a in applications()}
    assert not prune["llm-finetune-platform"] and not prune["llm-finetune-pipeline"]
    for kustomization in kustomizations():
        assert kustomization["spec"]["prune"] == (kustomization["metadata"]["name"] == "llm-finetune-serving")


@pytest.mark.parametrize(
    ("kind", "status", "health"),
    [
        ("argoproj.io_Application", None, "Progressing"),
        ("argoproj.io_Application", {"health": {"status": "Degraded"}}, "Degraded"),
        ("serving.kserve.io_InferenceService", None, "Progressing"),
        ("serving.kserve.io_InferenceService", {"conditions": [WAITING]}, "Progressing Deployment is not available"),
        ("serving.kserve.io_InferenceService", {"conditions": [READY], "url": "http://llm"}, "Healthy http://llm"),
        (
            "serving.kserve.io_InferenceService",
            {"conditions": [READY], "modelStatus": {"transitionStatus": "InProgress"}},
            "Progressing loading the new model",
        ),
        (
            "serving.kserve.io_InferenceService",
            {
                "conditions": [READY],
                "modelStatus": {
                    "transitionStatus": "BlockedByFailedLoad",
                    "lastFailureInfo": {"message": "out of memory"},
                },
            },
            "Degraded out of memory",
        ),
        ("argoproj.io_Workflow", None, "Progressing"),
        ("argoproj.io_Workflow", {"phase": "Failed", "message": "child failed"}, "Degraded child failed"),
        ("argoproj.io_Workflow", {"phase": "Succeeded"}, "Healthy"),
    ],
)
def test_health_is_what_the_object_says(kind: str, status: Any, health: str) -> None:
    assert judged(kind, {"status": status} if status else {}).startswith(health)


@pytest.mark.parametrize(
    ("phase", "ours", "others"),
    [
        ("Pending", "Healthy waits for its first pod", "Progressing Pending"),
        ("Bound", "Healthy Bound", "Healthy Bound"),
        ("Lost", "Degraded Lost", "Degraded Lost"),
        (None, "Progressing ", "Progressing "),
    ],
)
def test_a_claim_that_waits_for_its_first_pod_holds_no_wave_back(phase: str | None, ours: str, others: str) -> None:
    claim = of_kind(build(MANIFESTS / "overlays/gke"), "PersistentVolumeClaim")[0]
    status = {"status": {"phase": phase}} if phase else {}
    assert judged("PersistentVolumeClaim", claim | status) == ours
    assert judged("PersistentVolumeClaim", {"metadata": {"name": "data"}} | status) == others


def judged(kind: str, content: dict[str, Any]) -> str:
    """Returns what Argo CD would say of an object: its health and the message."""
    checks = yaml.safe_load((MANIFESTS / "argocd/config/argocd-cm.yaml").read_text())["data"]
    lua = LuaRuntime()
    check = lua.eval(f"function(obj)\n{checks[f'resource.customizations.health.{kind}']}\nend")
    found = check(lua.table_from(content, recursive=True))
    return f"{found.status} {found.message}"
