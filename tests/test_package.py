"""What is installed: every folder of the package, and the files that are no Python."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_folder_with_code_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(("llm_finetune", *file.parent.relative_to(ROOT).parts))
        for folder in ("components", "pipelines")
        for file in (ROOT / folder).rglob("*.py")
    }
    assert found == set(listed) and len(listed) == len(found)
