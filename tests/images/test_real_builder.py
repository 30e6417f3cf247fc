"""buildah itself: a push, a registry that refuses, a disk that is full (make test-images)."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine, missing
from registry import Registry, digest_of

from images import build, builders
from llm_finetune.components.shared.errors import UserError

pytestmark = pytest.mark.images
SMALL = "FROM scratch\nCOPY content /content\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store of 60 MB for buildah; returns a folder to build from."""
    needed = missing()
    if needed:
        pytest.fail(f"these tests need: {needed}", pytrace=False)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)], check=True)
    for name, value in Engine.prepare(disk / "store").environment.items():
        monkeypatch.setenv(name, value)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Containerfile").write_text(SMALL)
    yield context
    subprocess.run(["umount", "--lazy", str(disk / "store" / "graph" / "overlay")], check=False, capture_output=True)
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def build_small(context: Path, reference: str, size: int = 1000) -> None:
    (context / "content").write_bytes(b"x" * size)
    builders.Builder("buildah").build(context / "Containerfile", context, reference, {}, {})


def test_pushed_image_is_noted_by_the_digest_that_the_registry_holds(store: Path, tmp_path: Path) -> None:
    with Registry() as registry:
        reference = f"{registry.address}/team/data:1"
        build_small(store, reference)
        pushed = build.push(builders.Builder("buildah"), {"data": reference}, tmp_path / "images.json")
        manifest = registry.manifests["team/data:1"]
    assert pushed == {"data": f"{registry.address}/team/data@{digest_of(manifest)}"}
    assert json.loads((tmp_path / "images.json").read_text())["images"] == pushed


def test_registry_that_refuses(store: Path) -> None:
    with Registry(refuses=True) as registry:
        reference = f"{registry.address}/team/data:1"
        build_small(store, reference)
        with pytest.raises(UserError, match=r"rejects the push: run `buildah login localhost:\d+`"):
            builders.Builder("buildah").push(reference)
    with pytest.raises(UserError, match=r"cannot connect to localhost:\d+"):
        builders.Builder("buildah").push(reference)


def test_full_disk(store: Path) -> None:
    with pytest.raises(UserError, match=r"no space left in the image store of buildah.*buildah rmi --prune"):
        build_small(store, "localhost/x/data:1", size=80_000_000)
    listed = subprocess.run(["buildah", "images", "--quiet"], capture_output=True, text=True, check=False)
    assert listed.stdout == ""
