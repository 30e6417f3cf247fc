"""Deployments that fail on the kserve target: the reason that is told, and what is left in the cluster."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from cluster.fake_api.kserve import Fate
from cluster.fake_api.model import Serving
from cluster.world import NAME, PACE, V1, V2, World, fixture_make, fixture_world  # noqa: F401

INIT, SERVER = "storage-initializer", "kserve-container"


def waiting(container: str, reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    states = "initContainerStatuses" if container == INIT else "containerStatuses"
    return {states: [{"name": container, "state": {"waiting": {"reason": reason, "message": message}}, **more}]}


def ended(container: str, reason: str = "Error", message: str = "", code: int = 1, **more: Any) -> dict[str, Any]:
    states = "initContainerStatuses" if container == INIT else "containerStatuses"
    state = {"terminated": {"reason": reason, "message": message, "exitCode": code}}
    return {states: [{"name": container, "state": state, **more}]}


def running(container: str) -> dict[str, Any]:
    states = "initContainerStatuses" if container == INIT else "containerStatuses"
    return {states: [{"name": container, "state": {"running": {}}}]}


def crashing(reason: str = "Error", restarts: int = 3) -> dict[str, Any]:
    last = {"lastState": {"terminated": {"reason": reason, "exitCode": 1}}, "restartCount": restarts}
    return waiting(SERVER, "CrashLoopBackOff", "back-off 40s", **last)


def unschedulable(message: str = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.") -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


def refusal(transition: str, reason: str, message: str) -> dict[str, Any]:
    return {"transitionStatus": transition, "lastFailureInfo": {"reason": reason, "message": message}}


QUOTA = 'pods "llm" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
TRACE = "Traceback\nbotocore.exceptions.NoCredentialsError: Unable to locate credentials"
OOM = "INFO loading\nCUDA out of memory. Tried to allocate 2 GiB"
LENGTH = "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len (4096)"

ROWS = {
    "image": (Fate(pod=waiting(SERVER, "ImagePullBackOff", 'image "x" not found')), ["ImagePullBackOff: image"]),
    "image of the initializer": (Fate(pod=waiting(INIT, "ErrImagePull")), ["storage-initializer", "ErrImagePull"]),
    "image name": (Fate(pod=waiting(SERVER, "InvalidImageName")), ["cannot start: InvalidImageName"]),
    "config": (
        Fate(pod=waiting(SERVER, "CreateContainerConfigError", 'secret "x" not found')),
        ['secret "x" not found'],
    ),
    "weights": (
        Fate(pod=ended(INIT, message=TRACE)),
        ["loading the weights failed in storage-initializer", "no secret with the store's keys", "NoCredentialsError"],
    ),
    "weights again": (
        Fate(
            pod=waiting(INIT, "CrashLoopBackOff", lastState={"terminated": {"exitCode": 1}}),
            logs={(INIT, True): "AccessDenied: ListObjectsV2"},
        ),
        ["loading the weights failed", "AccessDenied: ListObjectsV2", "the keys may not read the model's folder"],
    ),
    "memory of the initializer": (
        Fate(pod=ended(INIT, "OOMKilled", code=137)),
        ["limit is 1Gi", "ClusterStorageContainer"],
    ),
    "memory": (
        Fate(pod=crashing("OOMKilled", restarts=1), logs={(SERVER, True): "loading shard 3"}),
        ["was killed for memory; raise `memory`", "loading shard 3"],
    ),
    "GPU memory": (
        Fate(pod=crashing(), logs={(SERVER, True): OOM}),
        ["has crashed 3 times (exit status 1)", "the model does not fit the GPU", "Tried to allocate 2 GiB"],
    ),
    "max_model_len": (
        Fate(pod=crashing(restarts=4), logs={(SERVER, True): LENGTH}),
        ["crashed 4 times", "max_model_len is longer than the model's own"],
    ),
    "quota": (
        Fate(deployment={"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}),
        ["pods cannot be made: FailedCreate", "exceeded quota: gpus", "Raise the quota"],
    ),
    "no node": (Fate(pod=unschedulable()), ["no node for pod", "3 Insufficient nvidia.com/gpu", "max_surge = 0"]),
    "no node ever": (
        Fate(pod=unschedulable(), events=["pod didn't trigger scale-up: 1 max node group size reached"]),
        ["the autoscaler: pod didn't trigger scale-up: 1 max node group size reached"],
    ),
    "invalid spec": (
        Fate(pod=unschedulable(), model=refusal("InvalidSpec", "NoSupportingRuntime", "no runtime for vLLM")),
        ["KServe: NoSupportingRuntime: no runtime for vLLM"],
    ),
    "blocked": (
        Fate(pod={}, model=refusal("BlockedByFailedLoad", "ModelLoadFailed", "exit 1")),
        ["KServe: ModelLoadFailed: exit 1"],
    ),
    "unknown runtime": (
        Fate(pod={}, model=refusal("InvalidSpec", "RuntimeNotRecognized", "Specified runtime does not exist")),
        ["KServe: RuntimeNotRecognized"],
    ),
    "time": (
        Fate(pod=running(SERVER), logs={(SERVER, False): "warm-up 3/9"}),
        ["was not ready after 3 s (starting the server; ", "Raise `ready_timeout`", "kserve-container", "warm-up 3/9"],
    ),
    "time of the weights": (
        Fate(pod=running(INIT), logs={(INIT, False): "shard 2/9"}),
        ["loading the weights", "The end of the log of storage-initializer", "shard 2/9"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_reason_is_told_and_a_first_deployment_is_removed(world: World, row: str) -> None:
    world.kserve.fates[V1], words = ROWS[row]
    message = world.refused(V1, pace=replace(PACE, ready=3 if row == "time" else 1.5))
    for word in words:
        assert word in message
    assert f"InferenceService team/{NAME}, which did not exist before, was removed" in message
    assert world.service() is None and world.api.store.all("Pod") == [] and world.api.store.all("Deployment") == []


@pytest.mark.parametrize("row", ["image", "weights", "GPU memory", "quota", "no node ever", "blocked"])
@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_reason_is_told_and_the_old_revision_goes_on(make: Callable[..., World], generation: str, row: str) -> None:
    world = make(generation)
    first = world.deploy(V1)
    before = world.service()["spec"]
    world.kserve.fates[V2], words = ROWS[row]
    message = world.refused(V2)
    assert words[0] in message
    assert f"the previous revision {first['revision']} was put back and serves" in message
    assert world.service()["spec"] == before and world.serves(V1)


@pytest.mark.parametrize("row", ["weights", "GPU memory", "no node ever"])
def test_knative_revision_that_fails_is_put_back(world: World, row: str) -> None:
    first = world.deploy(V1, deployment_mode="Knative")
    world.kserve.fates[V2], words = ROWS[row]
    message = world.refused(V2, deployment_mode="Knative")
    assert words[0] in message and f"the previous revision {first['revision']} was put back and serves" in message
    assert world.uri() == V1


def test_knative_quota(world: World) -> None:
    condition = {"type": "ResourcesAvailable", "status": "False", "reason": "FailedCreate", "message": QUOTA}
    world.kserve.fates[V1] = Fate(deployment=condition)
    assert "pods cannot be made: FailedCreate" in world.refused(V1, deployment_mode="Knative")
    assert world.service() is None


PASSING = {
    "image": waiting(SERVER, "ErrImagePull", "registry is away"),
    "crash": crashing(restarts=1),
    "node": unschedulable(),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_passes_is_waited_out(world: World, trouble: str) -> None:
    world.kserve.fates[V1] = fate = Fate(pod=PASSING[trouble])
    threading.Timer(0.5, lambda: setattr(fate, "pod", None)).start()
    world.deploy(V1, pace=replace(PACE, image=5, unschedulable=5))
    assert world.serves(V1)


def test_runtime_that_the_controller_has_not_seen_yet(world: World) -> None:
    model = refusal("InvalidSpec", "RuntimeNotRecognized", "Specified runtime does not exist")
    world.kserve.fates[V1] = fate = Fate(pod={}, model=model)

    def seen() -> None:
        fate.pod = fate.model = None

    threading.Timer(0.4, seen).start()
    world.deploy(V1)
    assert world.serves(V1)


def test_slow_deployment_is_not_given_up(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.kserve.fates[V1] = fate = Fate(
        deployment={"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "slow"}
    )
    threading.Timer(0.6, lambda: setattr(fate, "deployment", None)).start()
    world.deploy(V1)
    assert "slow: ProgressDeadlineExceeded" in capsys.readouterr().out and world.serves(V1)


def test_failure_of_an_earlier_revision_is_not_held_against_the_new_one(world: World) -> None:
    stale = refusal("BlockedByFailedLoad", "ModelLoadFailed", "old pod crashed")
    world.deploy(V1)
    world.kserve.fates[V1] = Fate(model=stale)
    while world.service()["status"]["modelStatus"] != stale:
        time.sleep(0.02)
    world.kserve.fates[V2] = Fate(seconds=0.5, model=stale)
    world.deploy(V2)
    assert world.serves(V2)


# The smoke test

ANSWERS = {
    "empty": (Serving(text=" "), "gave an empty answer"),
    "endless": (Serving(finish="length"), "ended none of its 1 answers by itself within 128 tokens"),
    "unlisted": (Serving(names=("another",)), f"lists another, not '{NAME}'"),
    "broken": (Serving(refuses=500), "answered 500"),
    "away": (Serving(refuses=503), "answered 503: no healthy upstream"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_model_that_does_not_answer_right_is_put_back(world: World, kind: str) -> None:
    first = world.deploy(V1)
    serving, words = ANSWERS[kind]
    world.kserve.fates[V2] = Fate(serving=serving)
    message = world.refused(V2)
    assert words in message and f"revision {first['revision']} was put back and serves" in message
    assert world.serves(V1)


def test_model_that_never_stops_can_be_allowed(world: World) -> None:
    world.kserve.fates[V1] = Fate(serving=Serving(finish="length"))
    assert world.deploy(V1, require_stop=False)["answers"][0]["finish_reason"] == "length"
    assert world.serves(V1)


def test_route_that_follows_late_is_waited_for(world: World) -> None:
    world.kserve.fates[V1] = fate = Fate(serving=Serving(refuses=503))
    threading.Timer(0.35, lambda: setattr(fate, "serving", Serving())).start()
    world.deploy(V1, pace=replace(PACE, settle=3))
    assert world.serves(V1)


def test_mesh_that_refuses_gets_the_policy_that_is_missing(world: World) -> None:
    world.kserve.fates[V1] = Fate(serving=Serving(refuses=403))
    message = world.refused(V1)
    assert "answered 403: RBAC: access denied" in message and "run without a sidecar" in message
    text = message[message.index("---") : message.index("InferenceService team/")]
    policy, fence = yaml.safe_load_all(text.rstrip().removesuffix("."))
    assert policy["kind"] == "AuthorizationPolicy" and policy["metadata"]["namespace"] == "team"
    assert policy["spec"]["selector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": NAME}
    assert policy["spec"]["rules"][0]["to"][0]["operation"]["paths"] == ["/v1/*", "/health", "/metrics"]
    assert fence["kind"] == "NetworkPolicy"
    assert world.service() is None


# Putting it back


def test_failed_first_deployment_can_be_kept(world: World) -> None:
    world.kserve.fates[V1] = ROWS["GPU memory"][0]
    message = world.refused(V1, keep_failed=True)
    assert "was left as it is (keep_failed); remove it with kubectl -n team delete inferenceservice llm" in message
    assert world.uri() == V1


def test_deletion_that_hangs_is_told(world: World) -> None:
    def finalized(obj: dict[str, Any], old: Any) -> None:
        if obj["kind"] == "InferenceService" and old is None:
            obj["metadata"]["finalizers"] = ["inferenceservice.finalizers"]

    world.api.store.admission.append(finalized)
    world.kserve.fates[V1] = ROWS["GPU memory"][0]
    message = world.refused(V1)
    assert "crashed 3 times" in message
    assert "is still being deleted after 1 s (finalizers: inferenceservice.finalizers)" in message


def test_rollback_that_fails_tells_both(world: World) -> None:
    world.deploy(V1)
    world.kserve.fates[V2] = replace(ROWS["GPU memory"][0], seconds=0)

    def lock() -> None:
        if world.uri() == V2:
            world.api.deny("patch", "serving.kserve.io", "inferenceservices")

    world.kserve.tick = lock
    message = world.refused(V2)
    assert "crashed 3 times" in message
    assert f"Putting InferenceService team/{NAME} back failed as well" in message and "403" in message
    assert world.uri() == V2


def test_service_of_somebody_else_gets_all_its_fields_back(world: World) -> None:
    theirs = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": "team"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "vLLM"}, "runtime": "llm-vllm"}}},
    }  # fmt: skip
    world.api.store.apply(theirs, "kubectl")
    world.deploy(V1, deployment_mode="Knative")
    # Taken over; what kubectl set stays kubectl's.
    before = world.service()["spec"]
    world.kserve.fates[V2] = ROWS["weights"][0]
    world.refused(V2, deployment_mode="Knative")
    assert world.service()["spec"] == before


def test_first_touch_of_a_foreign_service_is_taken_back_whole(world: World) -> None:
    theirs = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": "team",
                     "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "vLLM"}, "runtime": "llm-vllm"}}},
    }  # fmt: skip
    world.api.store.apply(theirs, "kubectl")
    time.sleep(0.3)
    world.kserve.fates[V2] = ROWS["weights"][0]
    message = world.refused(V2)
    assert "the previous state was put back" in message
    service = world.service()
    assert service["spec"] == theirs["spec"] and service["metadata"]["annotations"] == theirs["metadata"]["annotations"]
    assert [entry["manager"] for entry in service["metadata"]["managedFields"]] == ["kubectl"]


def test_state_that_was_broken_before_is_not_waited_for(world: World) -> None:
    world.kserve.fates[V1] = ROWS["GPU memory"][0]
    world.refused(V1, keep_failed=True)
    world.kserve.fates[V2] = ROWS["weights"][0]
    message = world.refused(V2)
    assert "was put back; it was not ready before either" in message and world.uri() == V1


# Interrupted

CARD = """
import sys
from kfp import dsl
from kubernetes import config
from llm_finetune.components.serving.vllm_serve import component
folder, uri = sys.argv[1:]
class Store(dsl.Model):
    path = property(lambda self: folder + "/none")
component.vllm_serve.python_func(
    Store(uri=uri, metadata={"content_hash": "sha256:" + uri}), dsl.Artifact(uri=folder + "/info"),
    dsl.Markdown(uri=folder + "/page"), deployment_name="llm", gpu_count="0", deployment_mode="Standard",
)
"""


@pytest.mark.parametrize("first", [True, False])
def test_sigterm_leaves_the_cluster_as_it_was(world: World, first: bool) -> None:
    if not first:
        world.deploy(V1)
    before = (world.service() or {}).get("spec")
    world.kserve.fates[V2] = Fate(seconds=1000)
    card = subprocess.Popen(
        [sys.executable, "-c", CARD, str(world.folder), V2],
        env=os.environ | {"KUBECONFIG": str(world.folder / "kubeconfig")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while world.uri() != V2 and time.monotonic() < deadline and card.poll() is None:
        time.sleep(0.05)
    time.sleep(0.2)
    card.send_signal(signal.SIGTERM)
    told, _ = card.communicate(timeout=30)
    assert card.returncode == 143, told
    assert ("was removed" if first else "was put back (not waited for)") in told and "Traceback" not in told
    assert (world.service() or {}).get("spec") == before
    assert not (world.folder / "info").exists()
