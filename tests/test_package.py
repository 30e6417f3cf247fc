"""What is installed, from a wheel and in place: every module, and the files that are no Python."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NO_PYTHON = {".jinja", ".yaml", ".json", ".jsonl", ".addresses"}


def shipped() -> set[str]:
    files = [file for folder in ("components", "pipelines") for file in (ROOT / folder).rglob("*") if file.is_file()]
    wanted = [file for file in files if file.suffix == ".py" or file.suffix in NO_PYTHON]
    return {f"llm_finetune/{file.relative_to(ROOT)}" for file in wanted}


def test_a_wheel_holds_every_module_and_template(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (".package", "components", "pipelines"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("llm_finetune/")}
    assert names == shipped() | {"llm_finetune/__init__.py", "llm_finetune/py.typed"}


def test_the_import_path_is_there_in_a_fresh_clone():
    """An editor, a type checker and the editable install all follow .package."""
    for name in ("components", "pipelines"):
        link = ROOT / ".package" / "llm_finetune" / name
        assert link.is_symlink() and link.resolve() == ROOT / name
    listed = subprocess.run(["git", "ls-files", "-s", ".package"], cwd=ROOT, capture_output=True, text=True).stdout
    if listed:  # empty outside a clone
        assert [line.split()[0] for line in listed.splitlines()].count("120000") == 2
    code = "import llm_finetune.pipelines.cli as m; print(m.__file__)"
    clean = {"PATH": "/usr/bin:/bin"}
    found = subprocess.run([sys.executable, "-c", code], cwd="/", env=clean, capture_output=True, text=True).stdout
    assert Path(found.strip()).resolve() == ROOT / "pipelines" / "cli.py"
