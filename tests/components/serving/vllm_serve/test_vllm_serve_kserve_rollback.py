"""Failed and interrupted deployments on the kserve target: what is left in the cluster."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from cluster.behaviors import FAILURES
from cluster.fake_api.kserve import Behavior
from cluster.world import NAME, V1, V2, World, fixture_make, fixture_world  # noqa: F401


def test_failed_first_deployment_can_be_kept(world: World) -> None:
    world.kserve.behaviors[V1] = FAILURES["GPU memory"][0]
    message = world.refused(V1, keep_failed=True)
    assert "was kept (keep_failed); delete it with kubectl -n team delete inferenceservice llm" in message
    assert world.uri() == V1


def test_deletion_that_hangs_is_told(world: World) -> None:
    def finalized(obj: dict[str, Any], old: Any) -> None:
        if obj["kind"] == "InferenceService" and old is None:
            obj["metadata"]["finalizers"] = ["inferenceservice.finalizers"]

    world.api.store.admission.append(finalized)
    world.kserve.behaviors[V1] = FAILURES["GPU memory"][0]
    message = world.refused(V1)
    assert "crashed 3 times" in message
    assert "is still being deleted after 1 s (finalizers: inferenceservice.finalizers)" in message


def test_rollback_that_fails_tells_both(world: World) -> None:
    world.deploy(V1)
    world.kserve.behaviors[V2] = replace(FAILURES["GPU memory"][0], seconds=0)

    def lock() -> None:
        if world.uri() == V2:
            world.api.deny("patch", "serving.kserve.io", "inferenceservices")

    world.kserve.tick = lock
    message = world.refused(V2)
    assert "crashed 3 times" in message
    assert f"Restoring InferenceService team/{NAME} failed: " in message and "403" in message
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
    world.kserve.behaviors[V2] = FAILURES["weights"][0]
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
    world.kserve.behaviors[V2] = FAILURES["weights"][0]
    message = world.refused(V2)
    assert "the previous state was restored" in message
    service = world.service()
    assert service["spec"] == theirs["spec"] and service["metadata"]["annotations"] == theirs["metadata"]["annotations"]
    assert [entry["manager"] for entry in service["metadata"]["managedFields"]] == ["kubectl"]


def test_state_that_was_broken_before_is_not_waited_for(world: World) -> None:
    world.kserve.behaviors[V1] = FAILURES["GPU memory"][0]
    world.refused(V1, keep_failed=True)
    world.kserve.behaviors[V2] = FAILURES["weights"][0]
    message = world.refused(V2)
    assert "was restored; it was not ready before the change" in message and world.uri() == V1


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
    Store(uri=uri, metadata={"content_hash": "sha256:" + uri}), dsl.Metrics(uri=folder + "/report"),
    dsl.Artifact(uri=folder + "/info"), dsl.Markdown(uri=folder + "/page"), deployment_name="llm", gpu_count="0",
    deployment_mode="Standard",
)
"""


@pytest.mark.parametrize("first", [True, False])
def test_sigterm_leaves_the_cluster_as_it_was(world: World, first: bool) -> None:
    if not first:
        world.deploy(V1)
    before = (world.service() or {}).get("spec")
    world.kserve.behaviors[V2] = Behavior(seconds=1000)
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
    assert (
        "was deleted" if first else "was restored; its readiness was not checked"
    ) in told and "Traceback" not in told
    assert (world.service() or {}).get("spec") == before
    assert not (world.folder / "info").exists()
