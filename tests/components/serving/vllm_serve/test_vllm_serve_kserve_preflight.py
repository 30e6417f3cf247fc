"""What the kserve target looks at before it changes anything: every lack is named with its fix, nothing is written."""

from collections.abc import Callable
from typing import Any

import pytest
from cluster.fake_api.store import Problem
from cluster.world import NAME, V1, V2, World, fixture_make, fixture_world  # noqa: F401

ENDPOINT = "seaweedfs.kubeflow:9000"
SESSION = {
    "store_session_info": {
        "Provider": "minio",
        "Params": {"endpoint": ENDPOINT, "disableSSL": "true", "secretName": "mlpipeline-minio-artifact"},
    }
}
MINIO = "minio://mlpipeline/v2/model"
KSERVE = "serving.kserve.io"


def put(world: World, kind: str, name: str, version: str = "v1", spaced: bool = True, **content: Any) -> None:
    metadata = {"name": name} | ({"namespace": "team"} if spaced else {}) | content.pop("metadata", {})
    world.api.store.put({"apiVersion": version, "kind": kind, "metadata": metadata} | content)


def secret(world: World, name: str, keys: tuple[str, ...], endpoint: str = "", https: str = "0") -> None:
    notes = {"serving.kserve.io/s3-endpoint": endpoint, "serving.kserve.io/s3-usehttps": https} if endpoint else {}
    put(world, "Secret", name, data={key: "eA==" for key in keys}, metadata={"annotations": notes})


def account(world: World, *secrets: str, **annotations: str) -> None:
    listed = [{"name": name} for name in secrets]
    put(world, "ServiceAccount", "llm-serving", secrets=listed, metadata={"annotations": annotations})


def node(world: World, name: str, gpus: int = 0, resource: str = "nvidia.com/gpu", **labels: str) -> None:
    capacity = {"cpu": "8"} | ({resource: str(gpus)} if gpus else {})
    put(world, "Node", name, spaced=False, status={"allocatable": capacity}, metadata={"labels": labels})


def nothing_changed(world: World) -> bool:
    return world.writes() == [] and world.service() is None


def test_cluster_without_kserve(make: Callable[..., World]) -> None:
    world = make(hide=(KSERVE,))
    assert "KServe is not installed. Install 0.15 or newer" in world.refused(V1)
    assert world.writes() == []


def test_missing_rights_are_listed_together(world: World) -> None:
    world.api.deny("create", KSERVE, "inferenceservices")
    world.api.deny("patch", KSERVE, "inferenceservices")
    world.api.deny("get", "", "pods/log")
    message = world.refused(V1)
    assert (
        "no permission to create, patch inferenceservices.serving.kserve.io; get pods/log in namespace team" in message
    )
    assert "Bind the Role of manifests/base" in message and "the namespace of its profile" in message
    assert nothing_changed(world)


def test_knative_asks_for_rights_of_its_own(world: World) -> None:
    world.api.deny("get", "serving.knative.dev", "revisions")
    assert "get revisions.serving.knative.dev" in world.refused(V1, deployment_mode="Knative")
    assert nothing_changed(world)


def test_missing_runtime_tells_the_command(world: World) -> None:
    message = world.refused(V1, runtime="other")
    assert "ServingRuntime other does not exist in namespace team" in message
    assert "kubectl -n team apply -f manifests/base/serving-runtime.yaml" in message
    assert nothing_changed(world)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disabled": True}, "is disabled"),
        ({"supportedModelFormats": [{"name": "sklearn"}]}, "serves sklearn, not vLLM"),
    ],
)
def test_runtime_that_cannot_serve_it(world: World, change: dict[str, Any], words: str) -> None:
    runtime = world.api.store.find("ServingRuntime", "llm-vllm")
    world.api.store.put(runtime | {"spec": runtime["spec"] | change})
    assert words in world.refused(V1)
    assert nothing_changed(world)


def test_runtime_that_may_not_be_read_is_noted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for plural in ("servingruntimes", "clusterservingruntimes"):
        world.api.deny("get", KSERVE, plural)
    world.deploy(V1)
    assert "ServingRuntime llm-vllm not checked: no permission to read it" in capsys.readouterr().out
    assert world.serves(V1)


def test_image_of_the_runtime_is_part_of_the_revision(world: World) -> None:
    first = world.deploy(V1)
    runtime = world.api.store.find("ServingRuntime", "llm-vllm")
    runtime["spec"]["containers"][0]["image"] = "vllm/vllm-openai:v0.25.0"
    world.api.store.put(runtime)
    assert world.deploy(V1)["revision"] != first["revision"]


def test_missing_service_account(world: World) -> None:
    message = world.refused(V1, service_account="nobody")
    assert "service account nobody does not exist: kubectl -n team create serviceaccount nobody" in message
    assert nothing_changed(world)


def test_store_without_keys_tells_how_to_make_them(world: World) -> None:
    message = world.refused(MINIO, metadata=SESSION)
    assert f"has no secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for {ENDPOINT}" in message
    assert "kubectl -n team get secret mlpipeline-minio-artifact -o jsonpath='{.data.accesskey}'" in message
    assert f"serving.kserve.io/s3-endpoint={ENDPOINT} serving.kserve.io/s3-usehttps=0" in message
    assert nothing_changed(world)


def test_keys_under_kfp_names_are_not_enough(world: World) -> None:
    secret(world, "mlpipeline-minio-artifact", ("accesskey", "secretkey"))
    account(world, "mlpipeline-minio-artifact")
    message = world.refused(MINIO, metadata=SESSION)
    assert "secret mlpipeline-minio-artifact has accesskey and secretkey, which KServe ignores" in message
    assert nothing_changed(world)


def test_keys_for_another_endpoint(world: World) -> None:
    secret(world, "aws", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    account(world, "aws")
    message = world.refused(MINIO, metadata=SESSION)
    assert f"the model is stored at {ENDPOINT}, but service account llm-serving has keys for aws (AWS)" in message
    assert nothing_changed(world)


def test_right_keys_let_it_through(world: World) -> None:
    secret(world, "store", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ENDPOINT)
    account(world, "store")
    world.deploy(MINIO, metadata=SESSION)
    assert world.serves("s3://mlpipeline/v2/model/")


def test_endpoint_of_the_settings_wins(world: World) -> None:
    secret(world, "store", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "other:9000")
    account(world, "store")
    world.deploy(MINIO, metadata=SESSION, storage_endpoint="other:9000", storage_secret="store")
    assert world.serves("s3://mlpipeline/v2/model/")


def test_secret_that_the_account_does_not_list(world: World) -> None:
    secret(world, "store", ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ENDPOINT)
    message = world.refused(MINIO, metadata=SESSION, storage_secret="store")
    assert "secret store is not among the secrets of service account llm-serving" in message
    assert """patch serviceaccount llm-serving -p '{"secrets":[{"name":"store"}]}'""" in message
    assert nothing_changed(world)


def test_role_of_the_account_is_enough_on_aws(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    account(world, **{"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"})
    world.deploy("s3://bucket/model")
    assert "public bucket" not in capsys.readouterr().out and world.serves("s3://bucket/model/")


def test_missing_claim(world: World) -> None:
    assert "claim models of pvc://models/run does not exist in namespace team" in world.refused("pvc://models/run")
    put(world, "PersistentVolumeClaim", "models")
    world.deploy("pvc://models/run")
    assert world.serves("pvc://models/run")


def test_secrets_that_may_not_be_read_are_noted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    secret(world, "store", ("AWS_ACCESS_KEY_ID",), ENDPOINT)
    account(world, "store")
    world.api.deny("get", "", "secrets")
    world.deploy(MINIO, metadata=SESSION)
    assert "service account and secrets not checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("nodes", "settings", "words"),
    [
        ([("a", 0)], {}, "no node has nvidia.com/gpu. Add such a node or its device plugin"),
        ([("a", 2)], {"gpu_count": "4"}, "gpu_count = 4, but no node has more than 2 nvidia.com/gpu"),
        ([("a", 2)], {"gpu_type": "amd.com/gpu"}, "no node has amd.com/gpu; the nodes have nvidia.com/gpu"),
        ([("a", 1)], {"node_selector": {"pool": "l4"}}, "has the labels of node_selector (pool=l4)"),
    ],
)
def test_accelerators_that_no_node_has(world: World, nodes: list[Any], settings: dict[str, Any], words: str) -> None:
    for name, gpus in nodes:
        node(world, name, gpus)
    assert words in world.refused(V1, **({"gpu_count": "1"} | settings))
    assert nothing_changed(world)


@pytest.mark.parametrize("scaler", ["karpenter.sh", "cluster-autoscaler"])
def test_autoscaler_may_add_the_node(world: World, scaler: str, capsys: pytest.CaptureFixture[str]) -> None:
    node(world, "a")
    if scaler == "karpenter.sh":
        world.api.hidden.discard(scaler)
    else:
        put(world, "ConfigMap", "cluster-autoscaler-status", metadata={"namespace": "kube-system"})
    world.deploy(V1, gpu_count="1")
    assert f"the autoscaler ({scaler}) may add one" in capsys.readouterr().out
    assert world.serves(V1)


def test_nodes_that_may_not_be_read_are_noted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.api.deny("list", "", "nodes")
    world.deploy(V1, gpu_count="1")
    assert "nodes not checked: no permission to read them" in capsys.readouterr().out
    limits = world.service()["spec"]["predictor"]["model"]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def test_quota_that_is_full(world: World) -> None:
    node(world, "a", 8)
    hard, used = {"requests.nvidia.com/gpu": "2", "requests.memory": "64Gi"}, {"requests.nvidia.com/gpu": "1"}
    put(world, "ResourceQuota", "gpus", status={"hard": hard, "used": used})
    message = world.refused(V1, gpu_count="1", replicas=2)
    assert "quota gpus leaves 1 requests.nvidia.com/gpu (of 2), the rollout adds 2 (2 pods)" in message
    assert "memory" not in message.split("Raise it")[0] and nothing_changed(world)


def test_quota_of_an_update_counts_the_surge_alone(world: World) -> None:
    world.deploy(V1)
    put(world, "ResourceQuota", "pods", status={"hard": {"pods": "1"}, "used": {"pods": "1"}})
    assert "or set max_surge = 0" in world.refused(V2)
    assert world.serves(V1)
    world.deploy(V2, max_surge=0)
    assert world.serves(V2)


def test_mode_of_an_existing_service_is_not_changed(world: World) -> None:
    world.deploy(V1, deployment_mode="Knative")
    message = world.refused(V2, deployment_mode="Standard")
    assert f"InferenceService {NAME} has mode Knative" in message and "Set deployment_mode = Knative" in message
    assert world.uri() == V1


def test_knative_that_is_not_installed(make: Callable[..., World]) -> None:
    world = make(hide=("serving.knative.dev",))
    assert "Knative Serving is not installed" in world.refused(V1, deployment_mode="Knative")
    assert nothing_changed(world)


def test_everything_is_told_at_once(world: World) -> None:
    node(world, "a")
    put(world, "ResourceQuota", "small", status={"hard": {"limits.memory": "1Gi"}})
    message = world.refused(V1, gpu_count="1", runtime="other", service_account="nobody")
    assert [line.split(".")[0].strip() for line in message.splitlines()[1:]] == ["1", "2", "3", "4"]
    assert "nothing was changed" in message and nothing_changed(world)


def test_schema_that_cannot_be_read_leaves_the_mode_as_given(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(*_: str) -> Any:
        raise Problem(403, "Forbidden", "no")

    monkeypatch.setattr(world.api.schemas, "document", hidden)
    info = world.deploy(V1, deployment_mode="RawDeployment")
    assert info["kserve"] == "unknown" and "its version is unknown" in capsys.readouterr().out
    assert world.service()["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"


def test_what_the_webhook_refuses_is_refused_before_any_change(world: World) -> None:
    def strict(obj: dict[str, Any], _: Any) -> None:
        if obj["kind"] == "InferenceService":
            raise Problem(400, "BadRequest", "admission webhook denied the request: no such thing")

    world.api.store.admission.append(strict)
    assert "was refused (400): admission webhook denied the request: no such thing" in world.refused(V1)
    assert world.service() is None and world.writes() == []


@pytest.mark.parametrize("uri", ["/tmp/model", "https://host/model", "s3://bucket", "hf://owner"])
def test_uris_that_no_cluster_can_load(world: World, uri: str) -> None:
    assert "the URI of merged_model is" in world.refused(uri)
    assert nothing_changed(world)
