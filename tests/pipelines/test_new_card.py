import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_finetune.components.shared.errors import UserError
from llm_finetune.pipelines.new_card import new_card
from llm_finetune.pipelines.signatures import ROOT


def test_a_new_card_has_a_generated_signature_and_its_tests_pass(tmp_path: Path) -> None:
    for name in (".package", "components", "pipelines"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "compiled")
        )
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py", "tests/surroundings.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / ".package")}
    command = [sys.executable, "-m", "llm_finetune.pipelines.new_card", "data/count_words"]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "tests/components/data/count_words/test_count_words.py" in made.stdout.split()
    face = (tmp_path / "components/data/count_words/component.py").read_text()
    assert '    column: str = "output",\n    word: str = "",\n' in face
    assert "        word: Word to search for; empty counts every row.\n" in face
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (
        again.returncode == 1 and again.stderr == "error: NAME=data/count_words: components/data/count_words exists\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "3 passed" in ran.stdout, ran.stdout
    for check in ("check", "format --check"):
        lint = subprocess.run(
            [sys.executable, "-m", "ruff", *check.split(), "components/data/count_words", "tests"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert lint.returncode == 0, lint.stdout


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "write group and card in lower case"),
        ("data/CountWords", "write group and card in lower case"),
        ("dat/count_words", "unknown group 'dat'; did you mean 'data'"),
        ("shared/count_words", "unknown group 'shared'"),
        ("data/../x", "write group and card"),
    ],
)
def test_a_wrong_place_is_refused_and_nothing_is_written(place: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        new_card(place)
