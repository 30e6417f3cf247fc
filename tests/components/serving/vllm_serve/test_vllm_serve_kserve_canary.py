"""Canaries and candidates on three generations of KServe: what serves, with which share, and what is left."""

import time
from collections.abc import Callable

import pytest
from cluster.behaviors import BAD
from cluster.fake_api.kserve import REVISION, Behavior
from cluster.fake_api.model import Serving
from cluster.world import NAME, V1, V2, World, fixture_make, fixture_world  # noqa: F401


def traffic(world: World) -> dict[str, int]:
    """Returns the share of every Knative revision."""
    entries = world.service()["status"]["components"]["predictor"]["traffic"]
    return {entry["revisionName"].rpartition("-")[2]: entry["percent"] for entry in entries}


def weights(world: World) -> dict[str, int]:
    [rule] = world.api.store.find("HTTPRoute", NAME)["spec"]["rules"]
    return {ref["name"]: ref["weight"] for ref in rule["backendRefs"]}


def gateway(make: Callable[..., World], splits: bool = True) -> World:
    world = make("0.21")
    world.api.hidden.discard("gateway.networking.k8s.io")
    world.kserve.splits = splits
    return world


# Knative


@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_knative_canary_is_asked_before_it_gets_its_share(make: Callable[..., World], generation: str) -> None:
    world = make(generation)
    world.deploy(V1, deployment_mode="Knative")
    world.kserve.behaviors[V2] = Behavior(serving=Serving(text="Two."))
    info = world.deploy(V2, deployment_mode="Knative", canary_percent=20)
    assert info["traffic"] == "20 % of the traffic" and info["answers"][0]["text"] == "Two."
    assert traffic(world) == {"00002": 20, "00001": 80}
    [asked] = {path.split("/v1/")[0] for path, _ in world.models.asked[1:]}
    assert asked == f"/team/{NAME}-predictor-00002"
    assert world.service()["spec"]["predictor"]["canaryTrafficPercent"] == 20


def test_knative_canary_is_promoted_without_a_new_revision(make: Callable[..., World]) -> None:
    world = make("0.18")
    world.deploy(V1, deployment_mode="Knative")
    canary = world.deploy(V2, deployment_mode="Knative", canary_percent=20)
    promoted = world.deploy(V2, deployment_mode="Knative")
    assert promoted["revision"] == canary["revision"] and promoted["traffic"] == "all of the traffic"
    assert traffic(world) == {"00002": 100}
    assert "canaryTrafficPercent" not in world.service()["spec"]["predictor"]


def test_knative_canary_that_fails_never_gets_traffic(make: Callable[..., World]) -> None:
    world = make("0.18")
    first = world.deploy(V1, deployment_mode="Knative")
    world.kserve.behaviors[V2] = BAD
    message = world.refused(V2, deployment_mode="Knative", canary_percent=20)
    assert (
        "returned an empty answer" in message and f"revision {first['revision']} was restored and is ready" in message
    )
    assert world.uri() == V1 and "00002" not in traffic(world)
    assert "canaryTrafficPercent" not in world.service()["spec"]["predictor"]


def test_knative_without_an_address_for_the_canary(make: Callable[..., World]) -> None:
    world = make("0.18")
    world.deploy(V1, deployment_mode="Knative")
    world.kserve.tags = False
    message = world.refused(V2, deployment_mode="Knative", canary_percent=20)
    assert "did not get a tag URL for the new revision" in message and world.uri() == V1


# Standard


@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_share_that_would_be_ignored_is_refused(make: Callable[..., World], generation: str) -> None:
    world = make(generation)
    world.deploy(V1)
    written = world.writes()
    message = world.refused(V2, canary_percent=10)
    words = "with the Gateway API only" if generation == "0.20" else "cannot split traffic in mode Standard"
    assert words in message and "candidate_first = True" in message and "KServe would ignore the setting" in message
    assert world.writes() == written and world.serves(V1)


def test_share_without_anything_to_share_with(world: World) -> None:
    assert f"InferenceService {NAME} does not exist" in world.refused(V1, canary_percent=10)
    assert world.service() is None


def test_gateway_canary_runs_beside_and_takes_its_share(make: Callable[..., World]) -> None:
    world = gateway(make)
    first = world.deploy(V1)
    world.kserve.behaviors[V2] = Behavior(serving=Serving(text="Two."))
    info = world.deploy(V2, canary_percent=10)
    [entry] = world.service()["spec"]["canary"]
    name = f"{NAME}-{entry['predictor']['name']}-predictor"
    assert entry["trafficPercent"] == 10 and entry["predictor"]["annotations"][REVISION] == info["revision"]
    assert entry["predictor"]["model"]["name"] == ""
    assert weights(world) == {f"{NAME}-predictor": 90, name: 10}
    assert world.models.asked[-1][0].startswith(f"/team/{name}/")
    assert info["answers"][0]["text"] == "Two." and info["traffic"] == "10 % of the traffic"
    main = world.service()["spec"]["predictor"]
    assert main["annotations"][REVISION] == first["revision"] and main["model"]["storageUri"] == V1


def test_gateway_canary_is_promoted_without_a_restart(make: Callable[..., World]) -> None:
    world = gateway(make)
    world.deploy(V1)
    world.deploy(V2, canary_percent=10)
    canary = world.service()["spec"]["canary"][0]["predictor"]["name"]
    before = world.api.store.find("Deployment", f"{NAME}-{canary}-predictor")["metadata"]
    world.deploy(V2)
    spec = world.service()["spec"]
    assert "canary" not in spec and spec["predictor"]["name"] == canary
    assert spec["predictor"]["model"]["storageUri"] == V2
    after = world.api.store.find("Deployment", f"{NAME}-{canary}-predictor")["metadata"]
    assert after["uid"] == before["uid"]
    world.deploy("gs://bucket/v3")
    assert world.service()["spec"]["predictor"]["name"] == canary


@pytest.mark.parametrize("behavior", [BAD, Behavior(pod={"phase": "Pending"})])
def test_gateway_canary_that_fails_is_taken_away(make: Callable[..., World], behavior: Behavior) -> None:
    world = gateway(make)
    first = world.deploy(V1)
    before = world.service()["spec"]
    world.kserve.behaviors[V2] = behavior
    message = world.refused(V2, canary_percent=10)
    assert f"the previous revision {first['revision']} was restored and is ready" in message
    assert world.service()["spec"] == before and world.serves(V1)
    # KServe removes the canary's Deployment a moment after its entry.
    deadline = time.monotonic() + 2
    while len(left := world.api.store.all("Deployment")) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [deployment["metadata"]["name"] for deployment in left] == [f"{NAME}-predictor"]


def test_gateway_that_gives_the_canary_no_traffic(make: Callable[..., World]) -> None:
    world = gateway(make, splits=False)
    world.deploy(V1)
    message = world.refused(V2, canary_percent=10)
    assert (
        "did not get 10 % of the traffic in the HTTPRoute; this version of KServe runs the canary without traffic"
        in message
    )
    assert "canary" not in world.service()["spec"] and world.serves(V1)


def test_route_that_may_not_be_read(make: Callable[..., World]) -> None:
    world = gateway(make)
    world.deploy(V1)
    world.api.deny("get", "gateway.networking.k8s.io", "httproutes")
    assert "no permission to read the HTTPRoute" in world.refused(V2, canary_percent=10)
    assert world.serves(V1)


# A candidate service


@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_candidate_answers_before_the_service_is_touched(make: Callable[..., World], generation: str) -> None:
    world = make(generation)
    world.deploy(V1)
    world.models.asked.clear()
    world.deploy(V2, candidate_first=True)
    assert [model for _, model in world.models.asked] == [f"{NAME}-candidate", NAME]
    assert world.service(f"{NAME}-candidate") is None and world.serves(V2)


def test_candidate_that_fails_leaves_the_service_alone(world: World) -> None:
    world.deploy(V1)
    generation = world.service()["metadata"]["generation"]
    world.kserve.behaviors[V2] = BAD
    message = world.refused(V2, candidate_first=True)
    assert f"{NAME}-candidate returned an empty answer" in message
    assert f"InferenceService team/{NAME}-candidate, which did not exist before, was deleted" in message
    assert world.service(f"{NAME}-candidate") is None
    assert world.service()["metadata"]["generation"] == generation and world.serves(V1)


def test_candidate_that_an_earlier_run_left_is_taken_over(world: World) -> None:
    world.deploy("gs://bucket/v0", deployment_name=f"{NAME}-candidate")
    world.deploy(V1)
    world.deploy(V2, candidate_first=True)
    assert world.service(f"{NAME}-candidate") is None and world.serves(V2)


def test_candidate_instead_of_a_share(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.deploy(V1)
    info = world.deploy(V2, canary_percent=10, candidate_first=True)
    assert "testing the model in a candidate service instead of canary_percent = 10" in capsys.readouterr().out
    assert info["traffic"] == "all of the traffic" and world.serves(V2)
