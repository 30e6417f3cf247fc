"""Registering in Kubeflow Model Registry, against a server that checks every body with the registry's own models."""

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mr_openapi
import pytest
from merge_export_adapter import export, make_adapter
from tiny import tiny_model

from llm_finetune.components.serving.merge_export import registry, step
from llm_finetune.components.shared.errors import UserError

RUN = "0b8a1c5e-4a9b-4b7e-9c53-0d9a4f0c2f11"
URI = f"minio://mlpipeline/v2/artifacts/llm-finetune/{RUN}/merge-export/merged_model"
PREFIX = "/api/model_registry/v1"
BODIES = {
    "registered_models": mr_openapi.RegisteredModelCreate,
    "model_versions": mr_openapi.ModelVersionCreate,
    "artifacts": mr_openapi.Artifact,
}


class FakeRegistry(ThreadingHTTPServer):
    """Keeps what is registered; `refuse` answers everything with that status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept: dict[str, list[dict[str, Any]]] = {kind: [] for kind in BODIES}
        self.numbers, self.refuse = itertools.count(1), 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeRegistry

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        kind = url.path.removeprefix(PREFIX + "/").rpartition("/")[2]
        single = {"registered_model": "registered_models", "model_version": "model_versions"}
        if kind in single:
            found = [item for item in self.server.kept[single[kind]] if item["name"] == query["name"]]
            self._answer(200, found[0]) if found else self._answer(404, {"code": "404", "message": "none"})
        else:
            items = self.server.kept[kind]
            self._answer(200, {"items": items, "nextPageToken": "", "pageSize": len(items), "size": len(items)})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = urlsplit(self.path).path.rpartition("/")[2]
        BODIES[{"versions": "model_versions"}.get(kind, kind)].from_dict(body)
        kept = body | {"id": str(next(self.server.numbers))}
        self.server.kept[{"versions": "model_versions"}.get(kind, kind)].append(kept)
        self._answer(201, kept)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        if self.server.refuse:
            status, body = self.server.refuse, {"code": str(self.server.refuse), "message": "not for you"}
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    fake = FakeRegistry()
    threading.Thread(target=fake.serve_forever, daemon=True).start()
    yield fake
    fake.shutdown()
    fake.server_close()


def registration(**changes: Any) -> registry.Registration:
    values = {
        "model": "addresses", "version": "abc", "uri": "s3://b/m/", "artifact_uri": URI,
        "figures": {"merged_loss": 0.5, "base_model": "org/base"},
    }  # fmt: skip
    return registry.Registration(**(values | changes))


def test_a_version_is_registered_once_with_the_run_it_comes_from(server: FakeRegistry) -> None:
    client = registry.connect(server.url)
    assert registry.register(client, registration()) == "addresses/abc"
    assert registry.register(client, registration()) == "addresses/abc"
    (model,), (version,), (artifact,) = server.kept.values()
    assert (model["name"], version["name"], version["registeredModelId"]) == ("addresses", "abc", model["id"])
    assert version["customProperties"]["merged_loss"]["double_value"] == 0.5
    assert artifact["uri"] == "s3://b/m/"
    assert {name: artifact[name] for name in ("modelSourceKind", "modelSourceId", "modelSourceName")} == {
        "modelSourceKind": "kfp", "modelSourceId": RUN, "modelSourceName": "llm-finetune",
    }  # fmt: skip
    registry.register(client, registration(version="def", artifact_uri="s3://b/m/"))
    assert [kept["name"] for kept in server.kept["model_versions"]] == ["abc", "def"]
    assert len(server.kept["registered_models"]) == 1 and "modelSourceKind" not in server.kept["artifacts"][1]


def test_registries_that_cannot_be_used(server: FakeRegistry) -> None:
    client = registry.connect(server.url)
    server.refuse = 403
    with pytest.raises(UserError, match=r"rejected addresses/abc: .*403"):
        registry.register(client, registration())
    with pytest.raises(UserError, match="is not a reachable Model Registry"):
        registry.connect(server.url)
    with pytest.raises(UserError, match=r"registry_url = 'http://127.0.0.1:1' is not a reachable"):
        registry.connect("http://127.0.0.1:1")


def test_the_card_registers_where_a_server_finds_the_weights(server: FakeRegistry, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "ft_result")
    settings = {"registry_url": server.url, "registered_model": "addresses"}
    with pytest.raises(UserError, match="KServe cannot load from a path of this machine"):
        export(base, adapter, tmp_path, **settings)
    assert not (tmp_path / "merged").exists()
    chosen = step.Settings(**settings)
    facts = step.merge_export(base, adapter, tmp_path / "merged", tmp_path / "summary.md", chosen, uri=URI)
    assert facts.registered == f"addresses/{facts.content_hash.removeprefix('sha256:')[:12]}"
    assert server.kept["artifacts"][0]["uri"] == URI.replace("minio", "s3") + "/"
    assert f"| registered as | {facts.registered} |" in (tmp_path / "summary.md").read_text()
    with pytest.raises(ValueError, match="must be set together"):
        step.Settings(registry_url=server.url)
