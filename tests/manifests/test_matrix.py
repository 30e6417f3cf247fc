"""Every combination of overlay and components that makes sense, against every supported Kubernetes (make test-manifests)."""

import itertools
import json
import os
from pathlib import Path

import pytest
import yaml
from manifests.kustomize import APART, FITTING, GPUS, MANIFESTS, OVERLAYS, Manifest, build, compose
from manifests.policies import violations
from manifests.schemas import CORE, UNSCHEMED, VERSIONS, core_mistakes, custom_mistakes

pytestmark = pytest.mark.manifests


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Each overlay bare, with each component, with each pair, with all, and gke with each kind of GPU."""
    several = [
        (overlay, chosen)
        for overlay in OVERLAYS
        for size in (0, 1, 2, len(FITTING[overlay]))
        for chosen in itertools.combinations(FITTING[overlay], size)
    ]
    return several + [("gke", (f"overlays/gke/gpus/{gpu}", *rest)) for gpu in GPUS for rest in ((), ("spot",))]


@pytest.fixture(scope="module", name="objects")
def fixture_objects(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """Every object that any combination builds, each distinct one once; the rules hold for each combination."""
    built = {f: build(MANIFESTS / f) for f in APART if f != "kfp" or (MANIFESTS / "kfp/pipeline.yaml").exists()}
    for number, (overlay, components) in enumerate(combinations()):
        folder = tmp_path_factory.mktemp(f"combination-{number}")
        found = compose(folder, f"overlays/{overlay}", components)
        assert violations(found) == [], f"{overlay} with {', '.join(components) or 'nothing'}"
        built[str(folder)] = found
    distinct = {json.dumps(manifest, sort_keys=True) for manifests in built.values() for manifest in manifests}
    return [json.loads(text) for text in sorted(distinct)]


@pytest.mark.parametrize("version", VERSIONS)
def test_core_objects_fit_every_kubernetes(version: str, objects: list[Manifest]) -> None:
    core = [manifest for manifest in objects if manifest["apiVersion"] in CORE]
    assert len(core) > 20
    assert [mistake for manifest in core for mistake in core_mistakes(manifest, version)] == []


def test_core_schemas_refuse_what_they_do_not_know(objects: list[Manifest]) -> None:
    claim = next(manifest for manifest in objects if manifest["kind"] == "PersistentVolumeClaim")
    misspelt = claim | {"spec": claim["spec"] | {"storageClass": "fast"}}
    assert any("storageClass" in mistake for mistake in core_mistakes(misspelt, VERSIONS[-1]))


def test_custom_resources_fit_their_schemas(objects: list[Manifest]) -> None:
    folder = os.environ.get("LLM_FINETUNE_CRD_SCHEMAS", "")
    if not folder:
        pytest.skip("LLM_FINETUNE_CRD_SCHEMAS names no folder of CRD schemas")
    custom = [manifest for manifest in objects if manifest["apiVersion"] not in CORE | UNSCHEMED]
    kinds = {manifest["kind"] for manifest in custom}
    assert {"ServingRuntime", "InferenceService", "PodMonitor", "PrometheusRule", "Application", "AppProject"} <= kinds
    assert [mistake for manifest in custom for mistake in custom_mistakes(manifest)] == []
    monitor = next(manifest for manifest in custom if manifest["kind"] == "PodMonitor")
    misspelt = monitor | {"spec": monitor["spec"] | {"podMetricEndpoints": []}}
    assert any("podMetricEndpoints" in mistake for mistake in custom_mistakes(misspelt))


def test_configuration_of_argo_cd_is_a_config_map() -> None:
    content = yaml.safe_load(Path(MANIFESTS / "argocd/config/argocd-cm.yaml").read_text())
    assert [mistake for version in VERSIONS for mistake in core_mistakes(content, version)] == []
