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

from llm_finetune.components.serving.merge_export import export, step
from llm_finetune.components.serving.merge_export.settings import Settings
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
    monkeypatch.setattr(object_stores, "RETRY_PAUSES", (0.0,))
    monkeypatch.setattr(export, "FILES_AT_ONCE", 1)
    with pytest.raises(UserError, match=r"ConnectionResetError.* run again to resume the copy"):
        export.export(folder, store.url("models/b"))
    assert "models/b/manifest.json" not in set(store.keys())
    first = [*sent]
    assert len(first) == 4
    (folder / "config.json").write_text('{"changed": 1}')
    broken.clear()
    export.export(folder, store.url("models/b"))
    assert sent[len(first) :] == ["config.json", "model-00003-of-00003.safetensors"]
    assert "export: 3 of 5 files were uploaded before" in capsys.readouterr().out
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
    monkeypatch.setattr(object_stores, "RETRY_PAUSES", (0.0, 0.0))
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


def test_files_of_an_earlier_export_are_gone_and_all_others_stay(folder: Path, store: Store) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    export.export(folder, store.url("models/again"))
    (folder / "adapter" / "adapter_config.json").unlink()
    (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.safetensors").write_bytes(b"one file now")
    others = ("NOTES.md", "vocab.txt", "other/model.safetensors", "adapter/readme.txt")
    for name in others:
        store.put(f"models/again/{name}", b"{}")
    store.put("models/again-2/model.safetensors", b"{}")
    export.check_export(store.url("models/again"))
    export.export(folder, store.url("models/again"))
    there = {key for key in store.keys() if key.startswith("models/again")}  # noqa: SIM118 - a method of ours
    left = {f"models/again/{name}" for name in ("model.safetensors", "config.json", "manifest.json", *others)}
    assert there == left | {"models/again-2/model.safetensors"}


def test_a_place_of_others_is_refused_and_never_cleared(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    place = store.url("shared/models")
    others = {"adapter_config.json": b"o", "model.safetensors.index.json": b"o", "theirs/a/weights.pt": b"o"}
    for name, content in others.items():
        store.put(f"shared/models/{name}", content)
    before = store.keys()
    for act in (export.check_export, lambda uri: export.export(folder, uri)):
        with pytest.raises(UserError) as refused:
            act(place)
        assert f"export_uri = {place!r} has files that are not of an earlier export: " in str(refused.value)
        assert "adapter_config.json, model.safetensors.index.json, theirs/a/weights.pt" in str(refused.value)
        assert "`merge_export: {export_overwrite: true}` in the recipe" in str(refused.value)
    assert store.keys() == before
    with pytest.raises(UserError, match=r"has files .*: models/adapter_config.json"):
        export.check_export(store.url("shared"))  # the folder above
    export.check_export(place, overwrite=True)
    export.export(folder, place, overwrite=True)
    for name, content in {**others, **files_of(folder)}.items():
        assert store.get(f"shared/models/{name}") == content
    assert (
        "that are not of the exported model: adapter_config.json, model.safetensors.index.json"
        in capsys.readouterr().out
    )
    with pytest.raises(
        UserError, match=r"which a server would load: adapter_config.json, model.safetensors.index.json"
    ):
        export.check_export(place)  # ours by now, but no better to serve


def test_the_card_refuses_before_it_looks_at_a_model(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights.pt").write_bytes(b"o")
    chosen = Settings(export_uri=str(tmp_path / "theirs"))
    with pytest.raises(UserError, match=r"not of an earlier export: weights.pt"):
        step.merge_export(tmp_path / "no", tmp_path / "no", tmp_path / "merged", tmp_path / "summary.md", chosen)


HASH = "0" * 64


@pytest.mark.parametrize("broken_off", [False, True])
@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"files": []}',
        b'{"files": {"precious.txt": null}}',
        b'{"version": 3, "assets": ["a"]}',
        *(
            json.dumps({"files": {"config.json": {"size": 2, "sha256": HASH}, name: {"size": 2, "sha256": HASH}}}).encode()
            for name in ("precious.txt", "../precious.json", "../config.json", "/config.json", "sub/config.json",
                         "adapter/../config.json", "adapter/sub/config.json", "", "*", "manifest.json")
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_ours_removes_nothing(
    folder: Path, tmp_path: Path, manifest: bytes, broken_off: bool
) -> None:
    place = tmp_path / "there" / "model"
    for name in ("precious.txt", "config.json", "sub/config.json", "../config.json", "../precious.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("{}")
    (place / (export.UNFINISHED_MANIFEST if broken_off else "manifest.json")).write_bytes(manifest)
    before = files_of(place.parent)
    for act in (export.check_export, lambda uri: export.export(folder, uri)):
        with pytest.raises(UserError, match="has files that are not of an earlier export"):
            act(str(place))
    assert files_of(place.parent) == before
    export.export(folder, str(place), overwrite=True)
    kept = {name: content for name, content in before.items() if not name.startswith("model/manifest.")}
    kept |= {f"model/{name}": content for name, content in files_of(folder).items()}
    after = files_of(place.parent)
    del after["model/manifest.json"]
    assert after == kept


def test_an_export_that_broke_off_is_known_for_ours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "there"
    (folder / "model.safetensors.index.json").write_text("{}")
    export.export(folder, str(place))
    (folder / "model.safetensors.index.json").unlink()

    def cut(system: object, file: Path, target: str) -> None:
        Path(target).write_bytes(file.read_bytes()[:10])  # as an end in the middle of a copy leaves it
        raise KeyboardInterrupt

    (folder / "model-00004-of-00004.safetensors").write_bytes(os.urandom(30))
    with monkeypatch.context() as patched:
        patched.setattr(export, "upload_file", cut)
        with pytest.raises(KeyboardInterrupt):
            export.export(folder, str(place))
    assert not (place / "manifest.json").exists()
    (folder / "model-00004-of-00004.safetensors").unlink()
    export.check_export(str(place))
    export.export(folder, str(place))
    assert sorted(files_of(place)) == sorted([*files_of(folder), "manifest.json"])


def test_roots_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("s3://bucket", "gs://bucket/", "s3://", "gs://bucket/./", "/", "file:///", "memory://"):
        with pytest.raises(UserError, match=rf"export_uri = '{uri}': .*is the root of a (bucket|file system)"):
            Settings.of({"export_uri": uri, "export_overwrite": True})
    assert Settings.of({"export_uri": "s3://bucket/model"}).export_uri == "s3://bucket/model"
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in (str(tmp_path), f"file://{tmp_path}/", f"{tmp_path}/a/..", "/tmp/.."):
        with pytest.raises(UserError, match="is a root or home folder"):
            export.check_export(uri, overwrite=True)


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
    with pytest.raises(UserError, match=r"incomplete: model-00003-of-00003.safetensors \(8999 of 9000 bytes\)"):
        export.export(folder, "memory://short/model")
    assert not system.exists("memory://short/model/manifest.json")


def test_places_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export_uri = 'nowhere://x': Protocol not known: nowhere"):
        export.check_export("nowhere://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: NotADirectoryError"):
        export.check_export(str(tmp_path / "file" / "below"))
