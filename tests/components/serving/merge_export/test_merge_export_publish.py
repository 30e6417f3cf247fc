"""Merge & Export: what reaches a Hub, through its real client."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import FakeHub, serving
from huggingface_hub import constants
from huggingface_hub.utils import _http

from llm_finetune.components.serving.merge_export import ownership, publish
from llm_finetune.components.serving.merge_export.export import file_checksums
from llm_finetune.components.shared.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "merged"
    (root / "adapter").mkdir(parents=True)
    (root / "model.safetensors").write_bytes(os.urandom(3000))
    (root / "config.json").write_text("{}")
    (root / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        running.tokens.add("hf_right")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield running


REPO = "someone/tuned"


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def push(folder: Path, overwrite: bool = False) -> str:
    publish.check_hub(REPO, overwrite)
    return publish.push(folder, REPO, private=True, message="Fine-tuned org/base", overwrite=overwrite)


def fill(hub: FakeHub, files: dict[str, bytes]) -> None:
    hub.created[REPO], hub.uploads[REPO] = {}, dict(files)


def test_a_push_brings_every_file(hub: FakeHub, folder: Path) -> None:
    url = push(folder)
    assert hub.created[REPO]["visibility"] == "private"
    manifest = ownership.manifest(file_checksums(folder))
    assert hub.uploads[REPO] == files_of(folder) | {"manifest.json": manifest}
    assert json.loads(manifest)["files"].keys() == files_of(folder).keys()
    assert url.startswith(f"{hub.url}/{REPO}/commit/")


def test_a_push_removes_what_an_earlier_one_brought_and_nothing_else(hub: FakeHub, folder: Path) -> None:
    fill(hub, {".gitattributes": b"*", "README.md": b"made with the repository"})
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / name).write_bytes(b"old")
    push(folder)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter/adapter_config.json"):
        (folder / name).unlink()
    others = {"images/loss.png": b"o", "onnx/model.bin": b"o", "NOTES.md": b"o", "vocab.txt": b"o"}
    hub.uploads[REPO] |= others
    push(folder)
    kept = {".gitattributes": b"*", "README.md": b"made with the repository", **others}
    del hub.uploads[REPO]["manifest.json"]
    assert hub.uploads[REPO] == kept | files_of(folder)


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        (None, "files that are not of an earlier export: adapter_config.json, model.safetensors.index.json, notes.txt"),
        (b"{}", "its manifest.json is invalid or not of this card"),
        (b'{"files": {"notes.txt": {"size": 1, "sha256": "%s"}}}' % (b"0" * 64), "invalid or not of this card"),
    ],
)
def test_a_repository_of_others_is_refused_before_the_work_begins(
    hub: FakeHub, folder: Path, manifest: bytes | None, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"adapter_config.json": b"o", "model.safetensors.index.json": b"o", "notes.txt": b"o"}
    before = others | ({"manifest.json": manifest} if manifest else {})
    fill(hub, before)
    for act in (lambda: publish.check_hub(REPO), lambda: publish.push(folder, REPO, True, "m")):
        with pytest.raises(UserError, match=named) as refused:
            act()
        assert "hub_repo = 'someone/tuned'" in str(refused.value)
        assert "`merge_export: {export_overwrite: true}`" in str(refused.value)
    assert hub.uploads[REPO] == before
    push(folder, overwrite=True)
    del hub.uploads[REPO]["manifest.json"]
    assert hub.uploads[REPO] == others | files_of(folder)
    assert (
        "that are not of the exported model: adapter_config.json, model.safetensors.index.json"
        in capsys.readouterr().out
    )


def test_weights_of_others_beside_an_earlier_push_are_refused(hub: FakeHub, folder: Path) -> None:
    push(folder)
    hub.uploads[REPO]["pytorch_model.bin"] = b"o"
    before = dict(hub.uploads[REPO])
    with pytest.raises(UserError, match=r"which a server would load: pytorch_model.bin"):
        push(folder)
    assert hub.uploads[REPO] == before


def test_a_manifest_that_cannot_be_read_is_no_leave_to_go_on(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder)
    before = dict(hub.uploads[REPO])
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))  # its client tries six times
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/{revision}/{filename}")
    for act in (lambda: publish.check_hub(REPO), lambda: publish.push(folder, REPO, True, "m")):
        with pytest.raises(
            UserError, match=r"hub_repo = 'someone/tuned': its manifest.json can't be read: .*Run again"
        ):
            act()
    assert hub.uploads[REPO] == before


def test_a_push_without_a_right_token(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not accept the token in HF_TOKEN") as refused:
        publish.check_hub(REPO)
    assert "hf_wrong" not in str(refused.value)
    with pytest.raises(
        UserError, match=r"the push to someone/tuned failed with status 403: the token in HF_TOKEN has no"
    ):
        publish.push(folder, "someone/tuned", private=True, message="m")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="push_to_hub needs a token"):
        publish.check_hub(REPO)
