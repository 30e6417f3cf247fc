"""A fake cluster with KServe and the vLLM Serve card, for tests of the kserve target."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster.fake_api.kserve import KServe
from cluster.fake_api.model import Models
from cluster.fake_api.server import FakeCluster
from kubernetes import config

from llm_finetune.components.serving.vllm_serve import targets
from llm_finetune.components.serving.vllm_serve.kserve import manifests
from llm_finetune.components.serving.vllm_serve.kserve.diagnosis import Timeouts
from llm_finetune.components.serving.vllm_serve.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.questions import Question

TIMEOUTS = Timeouts(ready=3, poll=0.03, image_pull=0.15, unschedulable=0.3, settle=0.4, deletion=1, retry_delay=0.02)
NAME = "llm"
V1, V2 = "gs://bucket/v1", "gs://bucket/v2"
SCHEMAS = os.environ.get("LLM_FINETUNE_CRD_SCHEMAS", "")


@dataclass
class World:
    """A fake cluster with KServe, and the vLLM Serve card."""

    api: FakeCluster
    kserve: KServe
    models: Models
    folder: Path

    def deploy(
        self,
        uri: str = V1,
        metadata: dict[str, Any] | None = None,
        timeouts: Timeouts = TIMEOUTS,
        rows: Sequence[Question] = (),
        **settings: Any,
    ) -> Any:
        chosen = {"deployment_name": NAME, "gpu_count": "0", "require_stop": True} | settings
        model = targets.ServedModel(
            self.folder / "none", uri, {"content_hash": f"sha256:{uri}"} | (metadata or {}), rows
        )
        info, page = self.folder / "info.json", self.folder / "page.md"
        return targets.kserve(model, info, page, Settings.of(chosen), timeouts)

    def refused(self, uri: str = V2, **settings: Any) -> str:
        with pytest.raises(UserError) as failure:
            self.deploy(uri, **settings)
        return str(failure.value)

    def service(self, name: str = NAME) -> dict[str, Any] | None:
        return self.api.store.find("InferenceService", name)

    def uri(self) -> str:
        """Returns the deployed storageUri."""
        service = self.service()
        return str(service["spec"]["predictor"]["model"]["storageUri"]) if service else ""

    def serves(self, uri: str) -> bool:
        """Returns whether the pods of this model, and no others, are ready."""
        pods = [p for p in self.api.store.all("Pod") if p["metadata"]["labels"]["app"] == f"{NAME}-predictor"]
        ready = [{"type": "Ready", "status": "True"}] in [(p["status"] or {}).get("conditions") for p in pods]
        return self.uri() == uri and len(pods) == 1 and ready

    def writes(self) -> list[str]:
        """Returns the requests that changed objects."""
        return [f"{m} {p}" for m, p in self.api.requests if m != "GET" and "selfsubject" not in p and "dryRun" not in p]


def start(tmp_path: Path, patch: pytest.MonkeyPatch, generation: str = "0.20", hide: tuple[str, ...] = ()) -> World:
    api, models = FakeCluster(generation, set(hide), SCHEMAS), Models()
    kserve = KServe(api, models, generation)
    path = api.kubeconfig(tmp_path / "kubeconfig")
    patch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "llm-serving", "namespace": "team"}}
    api.store.put(account | {"secrets": []})
    api.store.put(manifests.serving_runtime(namespace="team"))
    kserve.start()
    return World(api, kserve, models, tmp_path)


@pytest.fixture(name="make")
def fixture_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def made(*args: Any, **options: Any) -> World:
        worlds.append(start(tmp_path, monkeypatch, *args, **options))
        return worlds[-1]

    yield made
    for world in worlds:
        world.kserve.stop()
        world.api.stop()
        world.models.stop()


@pytest.fixture(name="world")
def fixture_world(make: Callable[..., World]) -> World:
    return make()


def rollout_of(world: World) -> dict[str, Any]:
    """Returns the Deployment of the predictor."""
    found = world.api.store.find("Deployment", f"{NAME}-predictor")
    assert found
    return found
