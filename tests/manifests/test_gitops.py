"""Argo CD and Flux point at what is there, may touch what it builds, and tell health as the objects do."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime  # the version that Argo CD runs health checks in
from manifests.kustomize import FITTING, MANIFESTS, OVERLAYS, Manifest, build, compose, of_kind
from manifests.policies import CLUSTER_WIDE

READY = {"type": "Ready", "status": "True"}
WAITING = {"type": "Ready", "status": "False", "message": "Deployment is not available"}


def applications() -> list[Manifest]:
    return of_kind([*build(MANIFESTS / "argocd"), *build(MANIFESTS / "argocd/apps")], "Application")


def project() -> dict[str, Any]:
    return dict(of_kind(build(MANIFESTS / "argocd"), "AppProject")[0]["spec"])


def test_every_application_points_at_a_kustomization_and_a_tag() -> None:
    found, allowed = applications(), project()
    flux = of_kind(build(MANIFESTS / "flux"), "Kustomization")
    paths = [a["spec"]["source"]["path"] for a in found] + [k["spec"]["path"].removeprefix("./") for k in flux]
    assert all((MANIFESTS.parent / path / "kustomization.yaml").is_file() for path in paths)
    assert {path for path in paths if "apps" not in path} == {
        "manifests/overlays/gke",
        "manifests/kfp",
        "manifests/serving/plain",
    }
    sources = [application["spec"]["source"] for application in found]
    assert {source["repoURL"] for source in sources} == set(allowed["sourceRepos"])
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
    after = {
        k["metadata"]["name"]: k["spec"].get("dependsOn") for k in of_kind(build(MANIFESTS / "flux"), "Kustomization")
    }
    platform = [{"name": "llm-finetune-platform"}]
    assert after == {platform[0]["name"]: None, "llm-finetune-pipeline": platform, "llm-finetune-serving": platform}


def test_project_allows_what_the_folders_build_and_no_more(tmp_path: Path) -> None:
    allowed = project()
    built = [
        *(m for o in OVERLAYS for m in compose(tmp_path / o, f"overlays/{o}", FITTING[o])),
        *build(MANIFESTS / "serving/autoscaled"), *build(MANIFESTS / "cluster/kueue"), *build(MANIFESTS / "argocd/apps"),
    ]  # fmt: skip
    kinds = {(m["apiVersion"].rpartition("/")[0], m["kind"]) for m in built}
    kinds |= {("pipelines.kubeflow.org", "Pipeline"), ("pipelines.kubeflow.org", "PipelineVersion")}
    listed = lambda key: {(entry["group"], entry["kind"]) for entry in allowed[key]}  # noqa: E731
    assert listed("clusterResourceWhitelist") == {kind for kind in kinds if kind[1] in CLUSTER_WIDE}
    assert listed("namespaceResourceWhitelist") == {kind for kind in kinds if kind[1] not in CLUSTER_WIDE}
    spaces = {m["metadata"]["namespace"] for m in built if m["kind"] not in CLUSTER_WIDE}
    assert spaces == {entry["namespace"] for entry in allowed["destinations"]}


def test_volumes_and_old_pipeline_versions_are_never_pruned() -> None:
    prune = {a["metadata"]["name"]: a["spec"]["syncPolicy"]["automated"]["prune"] for a in applications()}
    assert not prune["llm-finetune-platform"] and not prune["llm-finetune-pipeline"]
    for kustomization in of_kind(build(MANIFESTS / "flux"), "Kustomization"):
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
    checks = yaml.safe_load((MANIFESTS / "argocd/config/argocd-cm.yaml").read_text())["data"]
    script = checks[f"resource.customizations.health.{kind}"]
    lua = LuaRuntime()
    check = lua.eval(f"function(obj)\n{script}\nend")
    found = check(lua.table_from({"status": status} if status else {}, recursive=True))
    assert f"{found.status} {found.message}".startswith(health)
