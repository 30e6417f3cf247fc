"""Behaviors of revisions in the fake cluster, and the expected parts of the error messages."""

from typing import Any

from cluster.fake_api.kserve import Behavior
from cluster.fake_api.model import Serving

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


BAD = Behavior(serving=Serving(text=""))  # becomes ready, and returns empty answers

QUOTA = 'pods "llm" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
TRACE = "Traceback\nbotocore.exceptions.NoCredentialsError: Unable to locate credentials"
OOM = "INFO loading\nCUDA out of memory. Tried to allocate 2 GiB"
LENGTH = "ValueError: User-specified max_model_len (9000) is greater than the derived max_model_len (4096)"

FAILURES = {
    "image": (Behavior(pod=waiting(SERVER, "ImagePullBackOff", 'image "x" not found')), ["ImagePullBackOff: image"]),
    "image of the initializer": (Behavior(pod=waiting(INIT, "ErrImagePull")), ["storage-initializer", "ErrImagePull"]),
    "image name": (Behavior(pod=waiting(SERVER, "InvalidImageName")), ["cannot start: InvalidImageName"]),
    "config": (
        Behavior(pod=waiting(SERVER, "CreateContainerConfigError", 'secret "x" not found')),
        ['secret "x" not found'],
    ),
    "weights": (
        Behavior(pod=ended(INIT, message=TRACE)),
        ["loading the weights failed in storage-initializer", "no secret with the store's keys", "NoCredentialsError"],
    ),
    "weights again": (
        Behavior(
            pod=waiting(INIT, "CrashLoopBackOff", lastState={"terminated": {"exitCode": 1}}),
            logs={(INIT, True): "AccessDenied: ListObjectsV2"},
        ),
        ["loading the weights failed", "AccessDenied: ListObjectsV2", "the keys have no read access to the model's folder"],
    ),
    "memory of the initializer": (
        Behavior(pod=ended(INIT, "OOMKilled", code=137)),
        ["limit is 1Gi", "ClusterStorageContainer"],
    ),
    "memory": (
        Behavior(pod=crashing("OOMKilled", restarts=1), logs={(SERVER, True): "loading shard 3"}),
        ["was OOMKilled; raise `memory`", "loading shard 3"],
    ),
    "GPU memory": (
        Behavior(pod=crashing(), logs={(SERVER, True): OOM}),
        ["has crashed 3 times (exit status 1)", "the model does not fit on the GPU", "Tried to allocate 2 GiB"],
    ),
    "max_model_len": (
        Behavior(pod=crashing(restarts=4), logs={(SERVER, True): LENGTH}),
        ["crashed 4 times", "max_model_len exceeds the model's maximum"],
    ),
    "quota": (
        Behavior(deployment={"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}),
        ["pods cannot be created: FailedCreate", "exceeded quota: gpus", "Raise the quota"],
    ),
    "no node": (Behavior(pod=unschedulable()), ["no node for pod", "3 Insufficient nvidia.com/gpu", "max_surge = 0"]),
    "no node ever": (
        Behavior(pod=unschedulable(), events=["pod didn't trigger scale-up: 1 max node group size reached"]),
        ["the autoscaler: pod didn't trigger scale-up: 1 max node group size reached"],
    ),
    "invalid spec": (
        Behavior(pod=unschedulable(), model=refusal("InvalidSpec", "NoSupportingRuntime", "no runtime for vLLM")),
        ["KServe: NoSupportingRuntime: no runtime for vLLM"],
    ),
    "blocked": (
        Behavior(pod={}, model=refusal("BlockedByFailedLoad", "ModelLoadFailed", "exit 1")),
        ["KServe: ModelLoadFailed: exit 1"],
    ),
    "unknown runtime": (
        Behavior(pod={}, model=refusal("InvalidSpec", "RuntimeNotRecognized", "Specified runtime does not exist")),
        ["KServe: RuntimeNotRecognized"],
    ),
    "time": (
        Behavior(pod=running(SERVER), logs={(SERVER, False): "warm-up 3/9"}),
        ["was not ready after 3 s (starting the server; ", "Raise `ready_timeout`", "kserve-container", "warm-up 3/9"],
    ),
    "time of the weights": (
        Behavior(pod=running(INIT), logs={(INIT, False): "shard 2/9"}),
        ["loading the weights", "The end of the log of storage-initializer", "shard 2/9"],
    ),
}  # fmt: skip
