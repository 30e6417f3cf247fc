"""Adapters that share a base on three generations of KServe: what serves, and what is left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.behaviors import BAD
from cluster.world import NAME, TIMEOUTS, V1, World, fixture_make, fixture_world  # noqa: F401

from llm_finetune.components.serving.vllm_serve import targets
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.errors import UserError


def adapter(world: World, name: str, rank: int = 16, base: str = "owner/base") -> Path:
    folder = world.folder / name
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def serve(world: World, name: str, rank: int = 16, base: str = "owner/base", **settings: Any) -> dict[str, Any]:
    name_of_base, _, commit = base.partition(":")
    metadata = {"content_hash": name, "origin": {"base_model": name_of_base, "base_revision": commit}}
    model = targets.ServedModel(adapter(world, name, rank, name_of_base), f"gs://bucket/{name}", metadata)
    chosen = {"deployment_name": name, "serve_adapter": True, "adapter_service": "shared", "gpu_count": "0"} | settings
    return targets.kserve(model, world.folder / "info.json", world.folder / "page.md", Settings.of(chosen), TIMEOUTS)


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
    world.kserve.behaviors["gs://bucket/chat"] = BAD
    with pytest.raises(UserError, match=r"chat returned an empty answer(.|\n)*was restored and is ready"):
        serve(world, "chat")
    assert world.service("shared")["spec"] == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"remove_adapters": ["sq"], "base": "owner/base:1"},
            r"shared has no adapter 'sq'; did you mean 'sql'\? \(it has sql\)",
        ),
        ({"base": "owner/other"}, "shared serves the base hf://owner/base:1, but the adapter needs hf://owner/other"),
        ({"base": "owner/base:2"}, "serves the base hf://owner/base:1, but the adapter needs hf://owner/base:2"),
    ],
)
def test_adapter_that_does_not_fit(world: World, settings: dict[str, Any], words: str) -> None:
    serve(world, "sql", base="owner/base:1")
    before = world.service("shared")["spec"]
    with pytest.raises(UserError, match=words):
        serve(world, "chat", **settings)
    assert world.service("shared")["spec"] == before


def test_adapter_on_a_kserve_that_fetches_one_model(make: Callable[..., World]) -> None:
    world = make("0.15")
    with pytest.raises(UserError, match=r"KServe 0\.15 supports one model per service"):
        serve(world, "sql")
    assert world.service("shared") is None


def test_service_without_adapters_is_not_taken_for_a_base(world: World) -> None:
    world.deploy(V1)
    with pytest.raises(UserError, match="exists and serves no adapters"):
        serve(world, "sql", adapter_service=NAME)
    assert world.serves(V1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"remove_adapters": ["a"]}, "remove_adapters needs serve_adapter = True"),
        ({"serve_adapter": True, "canary_percent": 5}, "serve_adapter does not support canary_percent"),
        ({"serve_adapter": True, "adapter_service": "llm-finetune-v1"}, "which must differ"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Settings.of(settings)
