"""Deployments that fail on the kserve target: the reason that is told, and trouble that passes."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from cluster.behaviors import FAILURES, QUOTA, SERVER, crashing, refusal, unschedulable, waiting
from cluster.fake_api.kserve import Behavior
from cluster.fake_api.model import Serving
from cluster.world import NAME, TIMEOUTS, V1, V2, World, fixture_make, fixture_world  # noqa: F401


@pytest.mark.parametrize("row", FAILURES)
def test_reason_is_told_and_a_first_deployment_is_removed(world: World, row: str) -> None:
    world.kserve.behaviors[V1], words = FAILURES[row]
    message = world.refused(V1, timeouts=replace(TIMEOUTS, ready=3 if row == "time" else 1.5))
    for word in words:
        assert word in message
    assert f"InferenceService team/{NAME}, which did not exist before, was deleted" in message
    assert world.service() is None and world.api.store.all("Pod") == [] and world.api.store.all("Deployment") == []


@pytest.mark.parametrize("row", ["image", "weights", "GPU memory", "quota", "no node ever", "blocked"])
@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_reason_is_told_and_the_old_revision_goes_on(make: Callable[..., World], generation: str, row: str) -> None:
    world = make(generation)
    first = world.deploy(V1)
    before = world.service()["spec"]
    world.kserve.behaviors[V2], words = FAILURES[row]
    message = world.refused(V2)
    assert words[0] in message
    assert f"the previous revision {first['revision']} was restored and is ready" in message
    assert world.service()["spec"] == before and world.serves(V1)


@pytest.mark.parametrize("row", ["weights", "GPU memory", "no node ever"])
def test_knative_revision_that_fails_is_put_back(world: World, row: str) -> None:
    first = world.deploy(V1, deployment_mode="Knative")
    world.kserve.behaviors[V2], words = FAILURES[row]
    message = world.refused(V2, deployment_mode="Knative")
    assert words[0] in message and f"the previous revision {first['revision']} was restored and is ready" in message
    assert world.uri() == V1


def test_knative_quota(world: World) -> None:
    condition = {"type": "ResourcesAvailable", "status": "False", "reason": "FailedCreate", "message": QUOTA}
    world.kserve.behaviors[V1] = Behavior(deployment=condition)
    assert "pods cannot be created: FailedCreate" in world.refused(V1, deployment_mode="Knative")
    assert world.service() is None


PASSING = {
    "image": waiting(SERVER, "ErrImagePull", "registry is away"),
    "crash": crashing(restarts=1),
    "node": unschedulable(),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_passes_is_waited_out(world: World, trouble: str) -> None:
    world.kserve.behaviors[V1] = behavior = Behavior(pod=PASSING[trouble])
    threading.Timer(0.5, lambda: setattr(behavior, "pod", None)).start()
    world.deploy(V1, timeouts=replace(TIMEOUTS, image_pull=5, unschedulable=5))
    assert world.serves(V1)


def test_runtime_that_the_controller_has_not_seen_yet(world: World) -> None:
    model = refusal("InvalidSpec", "RuntimeNotRecognized", "Specified runtime does not exist")
    world.kserve.behaviors[V1] = behavior = Behavior(pod={}, model=model)

    def seen() -> None:
        behavior.pod = behavior.model = None

    threading.Timer(0.4, seen).start()
    world.deploy(V1)
    assert world.serves(V1)


def test_slow_deployment_is_not_given_up(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.kserve.behaviors[V1] = behavior = Behavior(
        deployment={"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "slow"}
    )
    threading.Timer(0.6, lambda: setattr(behavior, "deployment", None)).start()
    world.deploy(V1)
    assert "slow rollout: ProgressDeadlineExceeded" in capsys.readouterr().out and world.serves(V1)


def test_failure_of_an_earlier_revision_is_not_held_against_the_new_one(world: World) -> None:
    stale = refusal("BlockedByFailedLoad", "ModelLoadFailed", "old pod crashed")
    world.deploy(V1)
    world.kserve.behaviors[V1] = Behavior(model=stale)
    while world.service()["status"]["modelStatus"] != stale:
        time.sleep(0.02)
    world.kserve.behaviors[V2] = Behavior(seconds=0.5, model=stale)
    world.deploy(V2)
    assert world.serves(V2)


# The smoke test

ANSWERS = {
    "empty": (Serving(text=" "), "returned an empty answer"),
    "endless": (Serving(finish="length"), "none of the 1 answers of llm ended within 128 tokens"),
    "unlisted": (Serving(names=("another",)), f"lists another, not '{NAME}'"),
    "broken": (Serving(refuses=500), "answered 500"),
    "away": (Serving(refuses=503), "answered 503: no healthy upstream"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_model_that_does_not_answer_right_is_put_back(world: World, kind: str) -> None:
    first = world.deploy(V1)
    serving, words = ANSWERS[kind]
    world.kserve.behaviors[V2] = Behavior(serving=serving)
    message = world.refused(V2)
    assert words in message and f"revision {first['revision']} was restored and is ready" in message
    assert world.serves(V1)


def test_model_that_never_stops_can_be_allowed(world: World) -> None:
    world.kserve.behaviors[V1] = Behavior(serving=Serving(finish="length"))
    assert world.deploy(V1, require_stop=False)["answers"][0]["finish_reason"] == "length"
    assert world.serves(V1)


def test_route_that_follows_late_is_waited_for(world: World) -> None:
    world.kserve.behaviors[V1] = behavior = Behavior(serving=Serving(refuses=503))
    threading.Timer(0.35, lambda: setattr(behavior, "serving", Serving())).start()
    world.deploy(V1, timeouts=replace(TIMEOUTS, settle=3))
    assert world.serves(V1)


def test_mesh_that_refuses_gets_the_policy_that_is_missing(world: World) -> None:
    world.kserve.behaviors[V1] = Behavior(serving=Serving(refuses=403))
    message = world.refused(V1)
    assert "answered 403: RBAC: access denied" in message and "have no sidecar" in message
    text = message[message.index("---") : message.index("InferenceService team/")]
    policy, fence = yaml.safe_load_all(text.rstrip().removesuffix("."))
    assert policy["kind"] == "AuthorizationPolicy" and policy["metadata"]["namespace"] == "team"
    assert policy["spec"]["selector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": NAME}
    assert policy["spec"]["rules"][0]["to"][0]["operation"]["paths"] == ["/v1/*", "/health", "/metrics"]
    assert fence["kind"] == "NetworkPolicy"
    assert world.service() is None
