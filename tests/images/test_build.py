"""`make images` without building: which builder, which names, and a message for each way to fail."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from registry import Registry, digest_of

from images import build, builders, lock, pin, pip_settings
from llm_finetune.components.shared.card import PACKAGE_VERSION
from llm_finetune.components.shared.errors import UserError

# Stands in for a builder: keeps the names of images in a folder, and fails as the test says.
BUILDER = """#!/bin/bash
echo "$@" >> "$FAKE/calls"
case "$1" in
  build)
    while [ $# -gt 0 ]; do [ "$1" = --tag ] && tag=$2; [ "$1" = --file ] && file=$2; shift; done
    if [ -n "$FAIL" ] && [[ "$file" == *"${FAIL_AT:-}"* ]]; then echo "$FAIL"; exit 125; fi
    touch "$FAKE/${tag//\\//,}" ;;
  tag) touch "$FAKE/${3//\\//,}" ;;
  rmi) rm -f "$FAKE/${2//\\//,}" ;;
  images) echo "193 MB" ;;
  push)
    if [ -n "$FAIL" ]; then echo "$FAIL" >&2; exit 1; fi
    while [ $# -gt 1 ]; do [ "$1" = --digestfile ] && file=$2; shift; done
    printf 'sha256:%064d' 7 > "$file" ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a builder named buildah first, and returns the folder of what it was asked and what it holds."""
    program, held = tmp_path / "bin" / "buildah", tmp_path / "held"
    program.parent.mkdir()
    held.mkdir()
    program.write_text(BUILDER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE", str(held))
    monkeypatch.setattr(pip_settings, "read", lambda: pip_settings.parse(""))
    monkeypatch.setattr(lock, "check", lambda: None)
    return held


def names(fake: Path) -> list[str]:
    return sorted(path.name.replace(",", "/") for path in fake.iterdir() if path.name != "calls")


def build_all(**changed: object) -> dict[str, str]:
    asked = {"families": build.FAMILIES, "registry": "localhost/x", "tag": "1", "torch": "cpu"} | changed
    return build.build(builder=builders.find("buildah"), **asked)  # type: ignore[arg-type]


def test_all_images_get_their_names_together(fake: Path) -> None:
    assert build_all() == {family: f"localhost/x/{family}:1" for family in build.FAMILIES}
    assert names(fake) == [f"localhost/x/{family}:1" for family in build.FAMILIES]
    calls = (fake / "calls").read_text()
    assert calls.count("--build-arg TORCH=cpu") == 1
    assert f"--build-arg VERSION={PACKAGE_VERSION}" in calls


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("write /opt/venv/x: no space left on device", "no space left in the image store of buildah"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "does not match the hash in the lock",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "no CPU build of PyTorch"),
        ("ERROR: No matching distribution found for pydantic==9", "does not have a locked version"),
        ("something else entirely", "something else entirely"),
    ],
)
def test_failed_build_leaves_no_name(fake: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str) -> None:
    """The images that were built before the failing one get no name either."""
    monkeypatch.setenv("FAIL", said)
    monkeypatch.setenv("FAIL_AT", "images/train")
    with pytest.raises(UserError, match=message) as failed:
        build_all()
    assert "images/train/Containerfile" in str(failed.value)
    assert names(fake) == []


def test_earlier_images_survive_a_failed_build(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_all()
    before = names(fake)
    monkeypatch.setenv("FAIL", "no")
    with pytest.raises(UserError):
        build_all()
    assert names(fake) == before


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "denied: requested access to the resource is denied",
            "localhost rejects the push: run `buildah login",
        ),
        ("unauthorized: authentication required", "localhost rejects the push"),
        ("dial tcp 127.0.0.1:5000: connect: connection refused", "cannot connect to localhost"),
        ("blob upload invalid", "blob upload invalid"),
    ],
)
def test_refused_push(fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str) -> None:
    references = build_all()
    monkeypatch.setenv("FAIL", said)
    with pytest.raises(UserError, match=message):
        build.push(builders.find("buildah"), references, tmp_path / "images.json")
    assert not (tmp_path / "images.json").exists()


def test_pushed_digests_reach_the_compiled_pipeline(fake: Path, tmp_path: Path) -> None:
    file = tmp_path / "images.json"
    build.push(builders.find("buildah"), build_all(), file)
    digest = f"sha256:{7:064d}"
    compiled = compile_with({"LLM_FINETUNE_IMAGES": str(file)}, tmp_path / "digests.yaml")
    assert images_of(compiled) == {f"localhost/x/{family}@{digest}" for family in build.FAMILIES}
    named = compile_with(
        {"LLM_FINETUNE_IMAGES": str(file), "LLM_FINETUNE_REGISTRY": "registry.test/a"}, tmp_path / "named.yaml"
    )
    assert images_of(named) == {f"registry.test/a/{family}:{PACKAGE_VERSION}" for family in build.FAMILIES}
    file.write_text(json.dumps({"version": "0.0.1", "images": {"data": "localhost/x/data@sha256:old"}}))
    assert "sha256:old" not in compile_with({"LLM_FINETUNE_IMAGES": str(file)}, tmp_path / "old.yaml")


def images_of(compiled: str) -> set[str]:
    return set(re.findall(r"^ +image: (\S+)$", compiled, re.MULTILINE))


def compile_with(environment: dict[str, str], path: Path) -> str:
    command = [
        sys.executable,
        "-c",
        "import sys, pathlib; from llm_finetune.pipelines.compile import compile_pipeline; ",
    ]
    command[-1] += "compile_pipeline(pathlib.Path(sys.argv[1]))"
    plain = {name: value for name, value in os.environ.items() if name != "LLM_FINETUNE_REGISTRY"}
    subprocess.run([*command, str(path)], env=plain | environment, check=True, capture_output=True)
    return path.read_text()


def test_unknown_builder() -> None:
    with pytest.raises(UserError, match=r"BUILDER = 'biuldah' is not one of .*did you mean 'buildah'"):
        builders.find("biuldah")


def test_no_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="podman is not installed"):
        builders.find("podman")
    with pytest.raises(UserError, match="none of docker, podman and buildah is installed"):
        builders.find()


def test_docker_cannot_read_a_local_index(fake: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which docker cannot mount in a build"):
        builders.Builder("docker").build(tmp_path, tmp_path, "x:1", {}, {}, [Path("/opt/index")])


@pytest.mark.parametrize("arguments", [["dat"], ["--torch", "gpu"], ["--builder", "kaniko"]])
def test_command_line_refuses_in_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "images.build", *arguments]
    result = subprocess.run(command, cwd=lock.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and arguments[-1] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_pip_settings_are_taken_over_with_folders_and_certificates() -> None:
    listed = (
        "global.index-url='https://user:secret@index.test/simple'\n"
        "global.extra-index-url='\\nfile:///srv/pypi/simple\\nfile:///srv/more/simple'\n"
        "global.constraint='/etc/constraints.txt'\n"
        "install.find-links='/srv/wheels'\n"
        ":env:.cert='/etc/ssl/own.pem'\n"
        ":env:.index-url='https://other.test/simple'\n"
    )
    settings = pip_settings.parse(listed)
    assert settings.text.splitlines() == [
        "[global]",
        "index-url = https://other.test/simple",
        "extra-index-url = file:///srv/pypi/simple file:///srv/more/simple",
        "find-links = /srv/wheels",
        "cert = /run/certificates.crt",
    ]
    assert settings.certificates == Path("/etc/ssl/own.pem")
    assert settings.folders == (Path("/srv/more"), Path("/srv/pypi"), Path("/srv/wheels"))
    assert pip_settings.parse("") == pip_settings.PipSettings("[global]\n", None, ())


def containerfiles(folder: Path, base: str) -> list[Path]:
    files = [folder / family / "Containerfile" for family in build.FAMILIES]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text(f"# an image\nARG BASE={base}\n\nFROM ${{BASE}}\n")
    return files


def test_pin_writes_the_digest_that_the_registry_gives(tmp_path: Path) -> None:
    manifest = b'{"mediaType": "application/vnd.oci.image.index.v1+json"}'
    with Registry() as registry:
        registry.manifests["library/python:3.11"] = manifest
        files = containerfiles(tmp_path, f"{registry.address}/library/python:3.11")
        pinned = pin.write(tmp_path)
        assert pinned == f"{registry.address}/library/python:3.11@{digest_of(manifest)}"
        assert all(f"ARG BASE={pinned}\n" in file.read_text() for file in files)
        registry.manifests["library/python:3.11"] = b'{"mediaType": "application/vnd.oci.image.index.v1+json", "a": 1}'
        assert pin.write(tmp_path) != pinned  # a tag that has moved is pinned anew


def test_pin_writes_nothing_without_a_digest(tmp_path: Path) -> None:
    with Registry() as registry:
        files = containerfiles(tmp_path, f"{registry.address}/library/python:3.11")
        before = [file.read_text() for file in files]
        with pytest.raises(UserError, match=r"cannot read the digest of .*404.*No file was changed"):
            pin.write(tmp_path)
    with pytest.raises(UserError, match="No file was changed"):
        pin.write(tmp_path)
    assert [file.read_text() for file in files] == before
