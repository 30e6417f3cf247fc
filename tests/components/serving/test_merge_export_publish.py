"""Merge & Export: what reaches a Hub and object storage, through their real clients."""

import hashlib
import json
import os
from pathlib import Path

import fsspec
import pytest
from fake_hub import FakeHub, serving
from huggingface_hub import constants

from llm_finetune.components.serving.merge_export import publish
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
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        running.tokens.add("hf_right")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield running


def test_a_push_brings_every_file(hub: FakeHub, folder: Path) -> None:
    publish.check_hub()
    url = publish.push(folder, "someone/tuned", private=True, message="Fine-tuned org/base")
    assert hub.created["someone/tuned"]["visibility"] == "private"
    assert hub.uploads["someone/tuned"] == {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    assert url.startswith(f"{hub.url}/someone/tuned/commit/")


def test_a_push_without_a_right_token(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not accept the token in HF_TOKEN") as refused:
        publish.check_hub()
    assert "hf_wrong" not in str(refused.value)
    with pytest.raises(
        UserError, match=r"pushing to someone/tuned was answered with 403: the token in HF_TOKEN may not"
    ):
        publish.push(folder, "someone/tuned", private=True, message="m")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="push_to_hub needs a token"):
        publish.check_hub()


@pytest.mark.parametrize("uri", ["memory://bucket/models/a", "{tmp}/exported", "file://{tmp}/exported/"])
def test_an_export_is_checked_and_listed(folder: Path, tmp_path: Path, uri: str) -> None:
    uri = uri.format(tmp=tmp_path)
    publish.check_export(uri)
    manifest = publish.export(folder, uri)
    system, root = fsspec.core.url_to_fs(uri)
    listed = json.loads(system.cat_file(fsspec.core.url_to_fs(manifest)[1]))
    names = ["adapter/adapter_config.json", "config.json", "model.safetensors"]
    assert sorted(listed["files"]) == names
    for name in names:
        content = (folder / name).read_bytes()
        assert system.cat_file(f"{root.rstrip('/')}/{name}") == content
        assert listed["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert listed["size"] == sum((folder / name).stat().st_size for name in names)
    assert sorted(system.find(root)) == sorted(f"{root.rstrip('/')}/{name}" for name in [*names, "manifest.json"])


def test_a_file_that_arrives_short_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    put = system.put_file

    def cut(local: str, remote: str, **options: object) -> None:
        put(local, remote, **options)
        if remote.endswith("model.safetensors"):
            system.pipe_file(remote, Path(local).read_bytes()[:-1])

    monkeypatch.setattr(type(system), "put_file", staticmethod(cut))
    with pytest.raises(UserError, match=r"not whole: model.safetensors \(2999 of 3000 bytes\)"):
        publish.export(folder, "memory://short/model")
    assert not system.exists("memory://short/model/manifest.json")


def test_places_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export_uri = 'nowhere://x': Protocol not known: nowhere"):
        publish.check_export("nowhere://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written: NotADirectoryError"):
        publish.check_export(str(tmp_path / "file" / "below"))
