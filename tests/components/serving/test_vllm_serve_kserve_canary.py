"""Canaries, candidates and adapters on three generations of KServe: what serves, with which share, and what is left."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.fake_api.kserve import REVISION, Fate
from cluster.fake_api.model import Serving
from cluster.world import NAME, PACE, V1, V2, World, fixture_make, fixture_world  # noqa: F401

from llm_finetune.components.serving.vllm_serve import targets
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.errors import UserError

BAD = Fate(serving=Serving(text=""))


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
    world.kserve.fates[V2] = Fate(serving=Serving(text="Two."))
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
    world.kserve.fates[V2] = BAD
    message = world.refused(V2, deployment_mode="Knative", canary_percent=20)
    assert "gave an empty answer" in message and f"revision {first['revision']} was put back and serves" in message
    assert world.uri() == V1 and "00002" not in traffic(world)
    assert "canaryTrafficPercent" not in world.service()["spec"]["predictor"]


def test_knative_without_an_address_for_the_canary(make: Callable[..., World]) -> None:
    world = make("0.18")
    world.deploy(V1, deployment_mode="Knative")
    world.kserve.tags = False
    message = world.refused(V2, deployment_mode="Knative", canary_percent=20)
    assert "did not get the address of the new revision" in message and world.uri() == V1


# Standard


@pytest.mark.parametrize("generation", ["0.15", "0.18", "0.20"])
def test_share_that_would_be_ignored_is_refused(make: Callable[..., World], generation: str) -> None:
    world = make(generation)
    world.deploy(V1)
    written = world.writes()
    message = world.refused(V2, canary_percent=10)
    words = "only with the Gateway API" if generation == "0.20" else "cannot split traffic in mode Standard"
    assert words in message and "candidate_first = True" in message and "ignore the share in silence" in message
    assert world.writes() == written and world.serves(V1)


def test_share_without_anything_to_share_with(world: World) -> None:
    assert f"nothing is deployed as {NAME} to share the traffic with" in world.refused(V1, canary_percent=10)
    assert world.service() is None


def test_gateway_canary_runs_beside_and_takes_its_share(make: Callable[..., World]) -> None:
    world = gateway(make)
    first = world.deploy(V1)
    world.kserve.fates[V2] = Fate(serving=Serving(text="Two."))
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


@pytest.mark.parametrize("fate", [BAD, Fate(pod={"phase": "Pending"})])
def test_gateway_canary_that_fails_is_taken_away(make: Callable[..., World], fate: Fate) -> None:
    world = gateway(make)
    first = world.deploy(V1)
    before = world.service()["spec"]
    world.kserve.fates[V2] = fate
    message = world.refused(V2, canary_percent=10)
    assert f"the previous revision {first['revision']} was put back and serves" in message
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
    assert "did not get 10 % of the traffic in the HTTPRoute; this KServe runs the canary without traffic" in message
    assert "canary" not in world.service()["spec"] and world.serves(V1)


def test_route_that_may_not_be_read(make: Callable[..., World]) -> None:
    world = gateway(make)
    world.deploy(V1)
    world.api.deny("get", "gateway.networking.k8s.io", "httproutes")
    assert "may not read the HTTPRoute" in world.refused(V2, canary_percent=10)
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
    world.kserve.fates[V2] = BAD
    message = world.refused(V2, candidate_first=True)
    assert f"{NAME}-candidate gave an empty answer" in message
    assert f"InferenceService team/{NAME}-candidate, which did not exist before, was removed" in message
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
    assert "tried in a candidate service instead of taking 10 % of the traffic" in capsys.readouterr().out
    assert info["traffic"] == "all of the traffic" and world.serves(V2)


# Adapters on a shared base


def adapter(world: World, name: str, rank: int = 16, base: str = "owner/base") -> Path:
    folder = world.folder / name
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def serve(world: World, name: str, rank: int = 16, base: str = "owner/base", **settings: Any) -> dict[str, Any]:
    model = targets.Served(adapter(world, name, rank, base), f"gs://bucket/{name}", {"content_hash": name})
    chosen = {"deployment_name": name, "serve_adapter": True, "adapter_service": "shared", "gpu_count": "0"} | settings
    return targets.kserve(model, world.folder / "info.json", world.folder / "page.md", Settings.of(chosen), PACE)


def places(world: World) -> dict[str, str]:
    return {entry["mountPath"]: entry["uri"] for entry in world.service("shared")["spec"]["predictor"]["storageUris"]}


@pytest.mark.parametrize("generation", ["0.18", "0.20"])
def test_adapters_share_a_base(make: Callable[..., World], generation: str) -> None:
    world = make(generation)
    first = serve(world, "sql")
    assert first["model"] == "sql" and first["inference_service"] == "shared" and first["adapters"] == ["sql"]
    second = serve(world, "chat", rank=40)
    assert second["adapters"] == ["chat", "sql"]
    assert [model for _, model in world.models.asked] == ["sql", "chat"]
    assert places(world) == {
        "/mnt/models": "hf://owner/base",
        "/mnt/models/adapters/chat": "gs://bucket/chat",
        "/mnt/models/adapters/sql": "gs://bucket/sql",
    }
    flags = world.service("shared")["spec"]["predictor"]["model"]["args"]
    assert flags[-6:] == [
        "--enable-lora", "--max-lora-rank=64", "--max-loras=2", "--lora-modules",
        "chat=/mnt/models/adapters/chat", "sql=/mnt/models/adapters/sql",
    ]  # fmt: skip
    # The greatest rank stays when a smaller adapter comes.
    serve(world, "tiny", rank=4)
    assert "--max-lora-rank=64" in world.service("shared")["spec"]["predictor"]["model"]["args"]


def test_adapter_is_taken_off_with_the_next_one(world: World) -> None:
    serve(world, "sql")
    info = serve(world, "sql-two", remove_adapters=["sql"])
    assert info["adapters"] == ["sql-two"] and "/mnt/models/adapters/sql" not in places(world)


def test_adapter_that_does_not_answer_leaves_the_others(world: World) -> None:
    serve(world, "sql")
    before = world.service("shared")["spec"]
    world.kserve.fates["gs://bucket/chat"] = BAD
    with pytest.raises(UserError, match=r"chat gave an empty answer(.|\n)*was put back and serves"):
        serve(world, "chat")
    assert world.service("shared")["spec"] == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"remove_adapters": ["sq"]}, r"shared has no 'sq'; did you mean 'sql'\? \(it has sql\)"),
        ({"base": "owner/other"}, "shared serves hf://owner/base, and this adapter belongs on hf://owner/other"),
    ],
)
def test_adapter_that_does_not_fit(world: World, settings: dict[str, Any], words: str) -> None:
    serve(world, "sql")
    before = world.service("shared")["spec"]
    with pytest.raises(UserError, match=words):
        serve(world, "chat", **settings)
    assert world.service("shared")["spec"] == before


def test_adapter_on_a_kserve_that_fetches_one_model(make: Callable[..., World]) -> None:
    world = make("0.15")
    with pytest.raises(UserError, match=r"KServe 0\.15 fetches one model per service"):
        serve(world, "sql")
    assert world.service("shared") is None


def test_service_without_adapters_is_not_taken_for_a_base(world: World) -> None:
    world.deploy(V1)
    with pytest.raises(UserError, match="exists and carries no adapters"):
        serve(world, "sql", adapter_service=NAME)
    assert world.serves(V1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"remove_adapters": ["a"]}, "remove_adapters is for serve_adapter = True"),
        ({"serve_adapter": True, "canary_percent": 5}, "an adapter is already apart from the others"),
        ({"serve_adapter": True, "adapter_service": "llm-finetune-v1"}, "so they must differ"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Settings.of(settings)
