"""Merge & Export: what reaches object storage, through the real clients and into real stores."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from object_stores import Store, gcs_store, s3_store

from llm_finetune.components.serving.merge_export import export
from llm_finetune.components.shared import object_stores
from llm_finetune.components.shared.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "merged"
    (root / "adapter").mkdir(parents=True)
    for number in range(1, 4):
        (root / f"model-0000{number}-of-00003.safetensors").write_bytes(os.urandom(3000 * number))
    (root / "config.json").write_text("{}")
    (root / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    return root


@pytest.fixture(scope="module", params=[s3_store, gcs_store], ids=["s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with request.param(tmp_path_factory.mktemp("store")) as running:
        yield running


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_real_stores_get_every_byte(folder: Path, store: Store) -> None:
    (folder / "large.safetensors").write_bytes(os.urandom(12_000_000))  # more than one part of a multipart upload
    export.check_export(store.url("models/a"))
    export.export(folder, store.url("models/a"))
    expected = {f"models/a/{name}": content for name, content in files_of(folder).items()}
    assert store.keys() == sorted([*expected, "models/a/manifest.json"])
    assert all(store.get(key) == content for key, content in expected.items())


def test_an_export_that_broke_off_is_continued(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, broken = [], ["model-00003-of-00003.safetensors"]
    system, _ = object_stores.open_store(store.url("models/b"), "export_uri")  # fsspec gives the same one to all
    put = system.put_file

    def cut(local: str, remote: str, **options: Any) -> None:
        if Path(local).name in broken:
            raise ConnectionResetError("connection reset by peer")
        sent.append(Path(local).name)
        put(local, remote, **options)

    monkeypatch.setattr(system, "put_file", cut)
    monkeypatch.setattr(object_stores, "PAUSES", (0.0,))
    monkeypatch.setattr(export, "FILES_AT_ONCE", 1)
    with pytest.raises(UserError, match=r"ConnectionResetError.* run again to continue where it broke off"):
        export.export(folder, store.url("models/b"))
    assert "models/b/manifest.json" not in set(store.keys())
    first = [*sent]
    assert len(first) == 4
    (folder / "config.json").write_text('{"changed": 1}')
    broken.clear()
    export.export(folder, store.url("models/b"))
    assert sent[len(first) :] == ["config.json", "model-00003-of-00003.safetensors"]
    assert "export: 3 of 5 files had arrived before" in capsys.readouterr().out
    assert all(store.get(f"models/b/{name}") == content for name, content in files_of(folder).items())
    assert set(json.loads(store.get("models/b/manifest.json"))["files"]) == set(files_of(folder))
    assert "models/b/manifest.unfinished.json" not in set(store.keys())


def test_a_connection_that_breaks_once_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = type(fsspec.filesystem("memory"))
    put, failures = system.put_file, [TimeoutError("slow"), ConnectionResetError("reset")]

    def shaky(self: Any, local: str, remote: str, **options: Any) -> None:
        if failures:
            raise failures.pop()
        put(self, local, remote, **options)

    monkeypatch.setattr(system, "put_file", shaky)
    monkeypatch.setattr(object_stores, "PAUSES", (0.0, 0.0))
    export.export(folder, "memory://shaky/model")
    assert len(fsspec.filesystem("memory").find("/shaky/model")) == 6


def test_an_old_manifest_is_gone_while_a_new_model_arrives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    export.export(folder, "memory://again/model")
    put = type(system).put_file

    def watched(self: Any, local: str, remote: str, **options: Any) -> None:
        assert not system.exists("memory://again/model/manifest.json")
        put(self, local, remote, **options)

    monkeypatch.setattr(type(system), "put_file", watched)
    export.export(folder, "memory://again/model")
    assert system.exists("memory://again/model/manifest.json")


def test_weights_of_an_earlier_model_are_gone_before_the_manifest_is_there(folder: Path, store: Store) -> None:
    export.export(folder, store.url("models/again"))
    (folder / "adapter" / "adapter_config.json").unlink()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.safetensors").write_bytes(b"one file now")
    for name in ("model.safetensors.index.json", "pytorch_model.bin", "NOTES.md", "other/model.safetensors"):
        store.put(f"models/again/{name}", b"{}")
    export.export(folder, store.url("models/again"))
    left = ("model.safetensors", "config.json", "manifest.json", "NOTES.md", "other/model.safetensors")
    there = {key for key in set(store.keys()) if key.startswith("models/again/")}
    assert there == {f"models/again/{name}" for name in left}


@pytest.mark.parametrize("uri", ["memory://bucket/models/a", "{tmp}/exported", "file://{tmp}/exported/"])
def test_an_export_is_checked_and_listed(folder: Path, tmp_path: Path, uri: str) -> None:
    uri = uri.format(tmp=tmp_path)
    export.check_export(uri)
    manifest = export.export(folder, uri)
    system, root = fsspec.core.url_to_fs(uri)
    listed = json.loads(system.cat_file(fsspec.core.url_to_fs(manifest)[1]))
    names = sorted(files_of(folder))
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
        if "00003-of" in remote:
            system.pipe_file(remote, Path(local).read_bytes()[:-1])

    monkeypatch.setattr(type(system), "put_file", staticmethod(cut))
    with pytest.raises(UserError, match=r"not whole: model-00003-of-00003.safetensors \(8999 of 9000 bytes\)"):
        export.export(folder, "memory://short/model")
    assert not system.exists("memory://short/model/manifest.json")


def test_places_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export_uri = 'nowhere://x': Protocol not known: nowhere"):
        export.check_export("nowhere://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written: NotADirectoryError"):
        export.check_export(str(tmp_path / "file" / "below"))
