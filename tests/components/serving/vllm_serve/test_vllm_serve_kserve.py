"""The kserve target against a cluster that speaks HTTP: what is left in it, and what the user is told."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cluster.fake_api.kserve import REVISION, Behavior
from cluster.fake_api.model import Serving
from cluster.world import NAME, TIMEOUTS, V1, V2, World, fixture_make, fixture_world, rollout_of  # noqa: F401

from llm_finetune.components.serving.vllm_serve.kserve import manifests
from llm_finetune.components.serving.vllm_serve.settings import Settings


@pytest.mark.parametrize(
    ("generation", "mode", "spelt"),
    [
        ("0.15", "Standard", "RawDeployment"),
        ("0.15", "Knative", "Serverless"),
        ("0.18", "Standard", "Standard"),
        ("0.18", "Knative", "Knative"),
        ("0.20", "Standard", "Standard"),
        ("0.20", "RawDeployment", "Standard"),
    ],
)
def test_first_deployment_serves(make: Callable[..., World], generation: str, mode: str, spelt: str) -> None:
    world = make(generation)
    info = world.deploy(deployment_mode=mode)
    service = world.service()
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == spelt
    assert service["spec"]["predictor"]["annotations"][REVISION] == info["revision"]
    assert REVISION not in service["metadata"]["annotations"]
    [answer] = info["answers"]
    assert (answer["text"], answer["finish_reason"]) == ("Paris.", "stop")
    assert 0 < info["first_token_seconds"] <= answer["seconds"]
    assert info["traffic"] == "all of the traffic" and info["ready_seconds"] > 0
    assert info == json.loads((world.folder / "info.json").read_text())
    assert "Paris." in (world.folder / "page.md").read_text()


def test_new_revision_replaces_the_old_one(world: World) -> None:
    first = world.deploy(V1)
    world.kserve.behaviors[V2] = Behavior(serving=Serving(text="Two."))
    second = world.deploy(V2)
    assert second["revision"] != first["revision"] and second["answers"][0]["text"] == "Two."
    assert world.serves(V2)


@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_stale_ready_is_not_believed(make: Callable[..., World], generation: str) -> None:
    world = make(generation)
    world.deploy(V1)
    world.kserve.behaviors[V2] = Behavior(seconds=0.6, serving=Serving(text="Two."))
    begun = time.monotonic()
    info = world.deploy(V2)
    assert time.monotonic() - begun >= 0.6 and info["answers"][0]["text"] == "Two."
    assert world.serves(V2)


def test_slow_start_tells_what_it_waits_for(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.kserve.behaviors[V1] = behavior = Behavior(pod={"conditions": [{"type": "PodScheduled", "status": "False"}]})
    stages = [
        {
            "initContainerStatuses": [
                {"name": "storage-initializer", "state": {"waiting": {"reason": "PodInitializing"}}}
            ]
        },
        {"initContainerStatuses": [{"name": "storage-initializer", "state": {"running": {}}}]},
        {"containerStatuses": [{"name": "kserve-container", "state": {"running": {}}}]},
        None,
    ]

    def looks() -> int:
        return sum("/pods?" in path for _, path in world.api.requests)

    def script() -> None:
        for stage in stages:
            enough, patience = looks() + 4, time.monotonic() + 20
            while looks() < enough and time.monotonic() < patience:
                time.sleep(0.05)
            behavior.pod = stage

    threading.Thread(target=script).start()
    world.deploy(V1)
    told = capsys.readouterr().out
    steps = [
        "no node for pod",
        "pulling the image",
        "loading the weights",
        "starting the server",
        "sending test prompts",
    ]
    assert [told.index(step) for step in steps] == sorted(told.index(step) for step in steps)
    assert world.serves(V1)


def test_same_model_again_restarts_nothing(world: World) -> None:
    first = world.deploy(V1)
    before = rollout_of(world)["metadata"]["generation"]
    again = world.deploy(V1)
    assert again["revision"] == first["revision"] and rollout_of(world)["metadata"]["generation"] == before
    assert world.serves(V1)


def test_same_model_with_other_resources_waits_for_the_new_pods(world: World) -> None:
    world.deploy(V1)
    before = rollout_of(world)["metadata"]["generation"]
    world.kserve.behaviors[V1] = Behavior(seconds=0.3, serving=Serving(text="Again."))
    info = world.deploy(V1, memory="48Gi")
    assert rollout_of(world)["metadata"]["generation"] == before + 1
    assert info["answers"][0]["text"] == "Again." and world.serves(V1)


# Applying


def test_existing_spelling_of_the_mode_is_kept(make: Callable[..., World]) -> None:
    world = make("0.15")
    world.deploy(V1, deployment_mode="RawDeployment")
    world.deploy(V2, deployment_mode="Standard")
    assert world.service()["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    assert world.serves(V2)


def test_spelling_that_an_upgrade_left_behind_is_mended(make: Callable[..., World]) -> None:
    world = make("0.18")
    settings = Settings(deployment_name=NAME, namespace="team", gpu_count="0", deployment_mode="RawDeployment")
    legacy = manifests.inference_service(manifests.Deployment(settings, V1, content=f"sha256:{V1}"))
    world.api.store.apply(legacy, "llm-finetune")
    time.sleep(0.3)
    assert world.service()["status"]["deploymentMode"] == "Standard"
    world.deploy(V2)
    assert world.service()["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert world.serves(V2)


def test_fields_of_others_stay_and_our_old_ones_go(world: World) -> None:
    world.deploy(V1, node_selector={"zone": "a"})
    theirs = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": "team", "labels": {"team": "search"}},
        "spec": {"predictor": {"labels": {"cost": "7"}}},
    }  # fmt: skip
    world.api.store.apply(theirs, "platform")
    world.deploy(V2)
    service = world.service()
    assert service["metadata"]["labels"]["team"] == "search" and service["spec"]["predictor"]["labels"] == {"cost": "7"}
    assert "nodeSelector" not in service["spec"]["predictor"]
    assert world.serves(V2)


def test_conflict_names_the_owner_and_changes_nothing(world: World) -> None:
    world.deploy(V1)
    service = world.service()
    theirs = {key: service[key] for key in ("apiVersion", "kind")} | {
        "metadata": {"name": NAME, "namespace": "team"},
        "spec": {"predictor": {"minReplicas": 5}},
    }
    world.api.store.apply(theirs, "argocd-controller", force=True)
    before = world.service()["spec"]
    message = world.refused(V2)
    assert "'argocd-controller' owns .spec.predictor.minReplicas" in message and "ignoreDifferences" in message
    assert world.service()["spec"] == before


def test_change_in_between_is_not_overwritten(world: World) -> None:
    world.deploy(V1)
    intruded = []

    def intrude(obj: dict[str, Any], old: dict[str, Any] | None) -> None:
        # Between the dry run and the apply, a person raises the timeout.
        if obj["kind"] == "InferenceService" and not intruded and old and obj["spec"] != old["spec"]:
            intruded.append(1)
            theirs = world.service()
            theirs["spec"]["predictor"]["timeout"] = 99
            world.api.store.put(theirs, "kubectl-edit")

    world.api.store.admission.append(intrude)
    message = world.refused(V2)
    assert "owns .spec.predictor.timeout" in message or "changed by another client" in message
    assert world.uri() == V1 and world.service()["spec"]["predictor"]["timeout"] == 99


def test_status_that_moves_on_does_not_stop_an_update(world: World) -> None:
    world.deploy(V1)
    ticks = iter(range(10_000))

    def busy() -> None:
        service = world.service()
        if service and next(ticks) % 2 == 0:
            world.kserve.store.status(
                ("serving.kserve.io/v1beta1", "InferenceService", "team", NAME),
                (service.get("status") or {}) | {"annotations": {"beat": str(time.monotonic())}},
            )

    world.kserve.tick = busy
    world.deploy(V2)
    assert world.serves(V2)


def test_answer_that_gets_lost_is_no_failure(world: World) -> None:
    world.deploy(V1)
    world.api.fail(0, times=1, method="PATCH", path="inferenceservices", after=True)
    world.api.fail(503, times=1, method="PATCH", path="inferenceservices", after=True)
    world.deploy(V2)
    assert world.serves(V2)


# An API that has its own troubles


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_busy_api_is_waited_for(world: World, status: int) -> None:
    world.api.fail(status, times=3, path="inferenceservices|pods|deployments")
    world.deploy(V1)
    assert world.serves(V1)


def test_api_that_restarts_in_mid_wait_is_waited_for(world: World) -> None:
    world.kserve.behaviors[V1] = Behavior(seconds=1.0)
    threading.Timer(0.5, lambda: world.api.restart(down=0.4)).start()
    world.deploy(V1, timeouts=replace(TIMEOUTS, ready=8, retry_delay=0.05))
    assert world.serves(V1)


@pytest.mark.parametrize("trouble", ["expired", "broken", "forbidden"])
def test_watch_is_a_help_not_a_need(world: World, trouble: str) -> None:
    world.kserve.behaviors[V1] = Behavior(seconds=1.5)
    if trouble == "broken":
        world.api.fail(0, times=50, path="inferenceservices$")
    elif trouble == "expired":
        world.kserve.tick = world.api.store.expire
    timeouts = replace(TIMEOUTS, poll=1.0, ready=10)
    if trouble == "forbidden":
        real = world.api.store.admission
        real.append(lambda obj, _: world.api.deny("watch", "serving.kserve.io", "inferenceservices"))
    world.deploy(V1, timeouts=timeouts)
    assert [p for _, p in world.api.requests if "watch=" in p]
    assert world.serves(V1)


def test_watch_makes_a_change_seen_at_once(world: World) -> None:
    world.kserve.behaviors[V1] = Behavior(seconds=0.5)
    begun = time.monotonic()
    world.deploy(V1, timeouts=replace(TIMEOUTS, poll=5.0, ready=20))
    assert time.monotonic() - begun < 4 and world.serves(V1)


def test_api_that_stays_away_says_what_may_be_left(world: World) -> None:
    world.deploy(V1)
    world.kserve.behaviors[V2] = Behavior(seconds=100)
    threading.Timer(0.5, world.api.stop).start()
    message = world.refused(V2, timeouts=replace(TIMEOUTS, retry_delay=0.005))
    assert (
        "the Kubernetes API is unreachable" in message and f"Restoring InferenceService team/{NAME} failed" in message
    )
    assert f"kubectl -n team describe inferenceservice {NAME}" in message
    world.api._server = world.api._listen(world.api.port)


# Others at work


def test_later_deployment_is_not_undone(world: World) -> None:
    world.deploy(V1)
    world.kserve.behaviors[V2] = Behavior(seconds=100)

    def other() -> None:
        theirs = world.service()
        theirs["spec"]["predictor"]["annotations"][REVISION] = "theirs"
        theirs["spec"]["predictor"]["model"]["storageUri"] = "gs://bucket/v3"
        world.api.store.put(theirs, "llm-finetune", "Apply")

    threading.Timer(0.5, other).start()
    message = world.refused(V2)
    assert "its revision is theirs" in message and "was not changed back" in message
    assert world.uri() == "gs://bucket/v3"


def test_service_that_somebody_deletes_is_not_made_again(world: World) -> None:
    world.deploy(V1)
    world.kserve.behaviors[V2] = Behavior(seconds=100)
    key = ("serving.kserve.io/v1beta1", "InferenceService", "team", NAME)
    threading.Timer(0.5, lambda: world.api.store.delete(key)).start()
    assert "was deleted by another client" in world.refused(V2)
    assert world.service() is None
