import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from llm_finetune.components.serving.vllm_serve.kserve import manifests
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.engine import storage_uris
from llm_finetune.components.shared.errors import UserError

SETTINGS = Settings(deployment_name="my-llm", namespace="team")
DEPLOYMENT = manifests.Deployment(SETTINGS, "s3://bucket/run/model/")
KNATIVE = Settings(**vars(SETTINGS) | {"deployment_mode": "Knative"})
ADAPTED = replace(DEPLOYMENT, settings=KNATIVE, adapters=(("sql", "gs://b/sql"), ("chat", "hf://o/chat")), lora_rank=24)
SESSION = {
    "Provider": "minio",
    "Params": {"endpoint": "seaweedfs.kubeflow:9000", "disableSSL": "true", "secretName": "mlpipeline-minio-artifact"},
}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gs://bucket/run/model", "gs://bucket/run/model"),
        ("s3://bucket/run/model", "s3://bucket/run/model/"),
        ("s3://bucket/run/model/?region=eu", "s3://bucket/run/model/"),
        ("minio://mlpipeline/v2/artifacts/model", "s3://mlpipeline/v2/artifacts/model/"),
        ("oci://registry/team/model:1", "oci://registry/team/model:1"),
        ("pvc://models/run/model", "pvc://models/run/model"),
        ("hf://owner/model", "hf://owner/model"),
        ("hf://owner/model:abc", "hf://owner/model:abc"),
    ],
)
def test_artifact_uris_become_storage_uris(uri: str, expected: str) -> None:
    assert storage_uris.storage_of(uri).uri == expected


@pytest.mark.parametrize("session", [SESSION, json.dumps(SESSION)])
def test_store_session_gives_endpoint_and_secret(session: Any) -> None:
    storage = storage_uris.storage_of("minio://mlpipeline/a/model", {"store_session_info": session})
    assert storage == storage_uris.Storage(
        "s3://mlpipeline/a/model/", "seaweedfs.kubeflow:9000", "mlpipeline-minio-artifact", False
    )
    assert (
        storage_uris.storage_of("minio://b/m", {"store_session_info": session}, "other:9000").endpoint == "other:9000"
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/tmp/model", "a path of this machine.*target = local"),
        ("https://host/model", "cannot load from https://"),
        ("s3://bucket", "has no path"),
        ("gs:///x", "has no path"),
        ("hf://owner", "hf://owner/model"),
        ("hf://owner/model/sub", "hf://owner/model"),
    ],
)
def test_other_uris_are_refused(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        storage_uris.storage_of(uri)


def test_revision_changes_with_what_is_served_alone() -> None:
    first = manifests.revision(DEPLOYMENT)
    same = SETTINGS.model_copy(update={"replicas": 3, "node_selector": {"a": "b"}, "cpu": "2"})
    assert manifests.revision(replace(DEPLOYMENT, settings=same)) == first
    for change in (
        {"storage_uri": "s3://bucket/other/"},
        {"content": "sha256:1"},
        {"settings": SETTINGS.model_copy(update={"max_model_len": 512})},
        {"image": "vllm/vllm-openai:v0.25.0"},
    ):
        assert manifests.revision(replace(DEPLOYMENT, **change)) != first


def test_revision_stands_in_the_predictor_alone() -> None:
    service = manifests.inference_service(DEPLOYMENT)
    assert service["spec"]["predictor"]["annotations"] == {manifests.REVISION: manifests.revision(DEPLOYMENT)}
    assert manifests.REVISION not in json.dumps(service["metadata"])


def test_adapters_lie_beside_their_base() -> None:
    predictor = manifests.inference_service(ADAPTED)["spec"]["predictor"]
    assert predictor["storageUris"] == [
        {"uri": "s3://bucket/run/model/", "mountPath": "/mnt/models"},
        {"uri": "gs://b/sql", "mountPath": "/mnt/models/adapters/sql"},
        {"uri": "hf://o/chat", "mountPath": "/mnt/models/adapters/chat"},
    ]
    assert "storageUri" not in predictor["model"] and "--max-lora-rank=32" in predictor["model"]["args"]
    assert predictor["annotations"]["serving.knative.dev/progress-deadline"] == "1800s"
    assert manifests.revision(ADAPTED) != manifests.revision(replace(ADAPTED, adapters=ADAPTED.adapters[:1]))


def test_accelerators_and_flags() -> None:
    model = manifests.inference_service(DEPLOYMENT)["spec"]["predictor"]["model"]
    assert model["resources"]["limits"] == {"memory": "24Gi", "nvidia.com/gpu": "1"}
    assert model["args"] == [
        "--max-num-batched-tokens=8192",
        "--gpu-memory-utilization=0.9",
        "--tensor-parallel-size=1",
    ]
    none = manifests.inference_service(manifests.Deployment(Settings(gpu_count="0"), "gs://b/c"))
    assert "tolerations" not in none["spec"]["predictor"]
    assert none["spec"]["predictor"]["model"]["args"] == ["--max-num-batched-tokens=8192"]


def test_yaml_is_stable_and_reads_back() -> None:
    documents = [manifests.serving_runtime(), manifests.inference_service(DEPLOYMENT)]
    text = manifests.as_yaml(*documents)
    assert text == manifests.as_yaml(manifests.serving_runtime(), manifests.inference_service(DEPLOYMENT))
    assert list(yaml.safe_load_all(text)) == documents
    assert "&id" not in text


def test_runtime_of_the_gitops_folder_is_the_card_s_own() -> None:
    root = Path(__file__).parents[4]
    assert (root / "manifests/base/serving-runtime.yaml").read_text() == manifests.runtime_file(), (
        "run: python -m llm_finetune.components.serving.vllm_serve.kserve.manifests > manifests/base/serving-runtime.yaml"
    )


def test_manifests_are_what_the_kserve_sdk_knows() -> None:
    kserve = pytest.importorskip("kserve")
    for manifest, model in (
        (manifests.inference_service(DEPLOYMENT), "V1beta1InferenceService"),
        (manifests.inference_service(ADAPTED), "V1beta1InferenceService"),
        (manifests.serving_runtime(namespace="team"), "V1alpha1ServingRuntime"),
    ):
        seen = _as_sdk_sees_it(kserve, manifest, model)
        # The SDK's container class insists on a name.
        assert seen["spec"].get("predictor", {}).get("model", {}).pop("name", "") == ""
        assert seen == manifest


@pytest.mark.parametrize(("kind", "version"), [("InferenceService", "v1beta1"), ("ServingRuntime", "v1alpha1")])
def test_manifests_fit_the_crd_schemas(kind: str, version: str) -> None:
    folder = os.environ.get("LLM_FINETUNE_CRD_SCHEMAS", "")
    if not folder:
        pytest.skip("LLM_FINETUNE_CRD_SCHEMAS has no path of CRD schemas")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(folder) / f"serving.kserve.io_{kind}_{version}.json").read_text())
    fits = jsonschema.Draft202012Validator(_strict(schema))
    built = {"InferenceService": manifests.inference_service(DEPLOYMENT), "ServingRuntime": manifests.serving_runtime()}
    assert [error.message for error in fits.iter_errors(built[kind])] == []
    if kind == "InferenceService":
        assert [error.message for error in fits.iter_errors(manifests.inference_service(ADAPTED))] == []
    misspelt = built[kind] | {"spec": built[kind]["spec"] | {"predicter": {}}}
    assert any("predicter" in error.message for error in fits.iter_errors(misspelt))


def _as_sdk_sees_it(kserve: Any, manifest: dict[str, Any], model: str) -> dict[str, Any]:
    """Reads a manifest into the SDK's classes and writes it back: what they do not know is lost."""
    from kubernetes.client import ApiClient

    class Client(ApiClient):  # type: ignore[misc]
        def _ApiClient__deserialize(self, data: Any, klass: Any) -> Any:
            if isinstance(klass, str):
                # Kubernetes' own types go by their Go package in the SDK.
                klass = re.sub(r"^K8sIoApi(Apps|Core)", "", klass)
                klass = getattr(kserve.models, klass, klass)
            return super()._ApiClient__deserialize(data, klass)

    client = Client()
    read = client.deserialize(SimpleNamespace(data=json.dumps(manifest)), model)
    return dict(client.sanitize_for_serialization(read))


def _strict(schema: Any) -> Any:
    """Turns a Kubernetes structural schema into JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(value) for key, value in schema.items() if key not in ("default", "format", "properties")}
    if "properties" in schema:
        strict["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            strict["additionalProperties"] = False
    return strict
