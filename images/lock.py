"""Writes the locks of the images from pyproject.toml, and checks that they match.

pyproject.toml declares the requirements of each image, a lock lists the exact files. Versions are those of
images/local/requirements.txt, so that images contain the tested versions.
"""

import functools
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llm_finetune.components.shared.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
TESTED_VERSIONS = Path("images/local/requirements.txt")
BUILD_SYSTEM = Path("images/build-system.txt")
DIRECT = "#   "  # prefix of a line with a direct requirement
# Installed without its requirements: inside a step, kfp imports none of them.
WITHOUT_REQUIREMENTS = "kfp"


@dataclass(frozen=True)
class Lock:
    """Sources of a lock file.

    Attributes:
        path: Lock file, relative to the root of the repository.
        extras: Extras of pyproject.toml, in addition to the requirements of the package.
        torch: Build of PyTorch to resolve with; empty without PyTorch.
        beyond: Lock that is installed together with this one; its packages are not repeated.
    """

    path: Path
    extras: tuple[str, ...]
    torch: str = ""
    beyond: Path | None = None


TRAIN = Path("images/train/requirements.txt")
TRAIN_EXTRAS = ("train", "tasks", "judge")
LOCKS = (
    Lock(Path("images/control/requirements.txt"), ("control",)),
    Lock(Path("images/data/requirements.txt"), ("data",)),
    Lock(TRAIN, TRAIN_EXTRAS, torch="cpu"),
    Lock(Path("images/train/torch-cpu.txt"), TRAIN_EXTRAS, torch="cpu", beyond=TRAIN),
    Lock(Path("images/train/torch-cuda.txt"), (*TRAIN_EXTRAS, "gpu"), torch="cuda", beyond=TRAIN),
)


def requirements_of(lock: Lock) -> dict[str, str]:
    """Returns the direct requirements of a lock file and their reasons, from pyproject.toml.

    Args:
        lock: The lock.

    Returns:
        Reasons by requirement, such as `{"jinja2>=3.1,<4": "report pages"}`.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    requirements = list(project["dependencies"]) + [line for extra in lock.extras for line in optional[extra]]
    requirements += [line for line in optional["cli"] if Requirement(line).name == WITHOUT_REQUIREMENTS]
    reasons = _reasons()
    if lock.beyond:
        beside = next(other for other in LOCKS if other.path == lock.beyond)
        requirements = [line for line in requirements if line not in requirements_of(beside)]
    elif lock.torch:
        requirements = [line for line in requirements if Requirement(line).name != "torch"]
    return {line: reasons.get(line, "") for line in requirements}


def _reasons() -> dict[str, str]:
    """Returns the comment of each requirement in pyproject.toml."""
    lines = PYPROJECT.read_text(encoding="utf-8").splitlines()
    found = (re.match(r'\s*"([^"]+)",\s*#\s*(.+)', line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def check() -> None:
    """Checks that the locks match pyproject.toml.

    Raises:
        UserError: With the file and the requirements that differ.
    """
    for lock in LOCKS:
        differing = _differing(lock)
        if differing:
            raise UserError(
                f"{lock.path} does not match pyproject.toml: {', '.join(differing)} (+ required, - locked). "
                "Run `make images-lock`"
            )


def _differing(lock: Lock) -> list[str]:
    """Returns the direct requirements that are only in pyproject.toml or only in the lock."""
    file = ROOT / lock.path
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    locked = {line.removeprefix(DIRECT).split("  ")[0] for line in lines if line.startswith(DIRECT)}
    required = set(requirements_of(lock))
    return [f"+ {line}" for line in sorted(required - locked)] + [f"- {line}" for line in sorted(locked - required)]


def _untested(lock: Lock) -> list[str]:
    """Returns the packages of a lock whose version differs from the tested one."""
    tested = read(TESTED_VERSIONS)
    return [name for name, version in read(lock.path).items() if tested.get(name, version) != version.partition("+")[0]]


def write() -> list[Path]:
    """Updates the locks that do not match pyproject.toml or the tested versions.

    Returns:
        The written files.

    Raises:
        UserError: If this machine has another platform than the images, or pip finds no solution.
    """
    here = (sys.version_info[:2], platform.system(), platform.machine())
    if here != ((3, 11), "Linux", "x86_64"):
        raise UserError(f"locks contain files for Python 3.11 on Linux x86_64; this machine has {here}")
    stale = {lock.path for lock in LOCKS if _differing(lock) or _untested(lock)}
    # Locks in one folder are installed together and must come from one resolution.
    stale = {lock.path for lock in LOCKS if lock.path.parent in {path.parent for path in stale}}
    texts: dict[Path, str] = {}
    if not (ROOT / BUILD_SYSTEM).is_file() or read(BUILD_SYSTEM).items() - read(TESTED_VERSIONS).items():
        wheels = tuple(_build_system())
        texts[BUILD_SYSTEM] = _rendered(BUILD_SYSTEM, dict.fromkeys(wheels, ""), _resolve(wheels))
    for lock in LOCKS:
        if lock.path in stale:
            texts[lock.path] = _rendered(lock.path, requirements_of(lock), _own_entries(lock))
    for path, text in texts.items():
        (ROOT / path).write_text(text, encoding="utf-8")
    return list(texts)


def _own_entries(lock: Lock) -> dict[str, str]:
    """Returns the entries of a lock by name, without those of the lock that it is installed with."""
    entries = _entries(lock)
    if lock.beyond:
        beside = _entries(next(other for other in LOCKS if other.path == lock.beyond))
        shared = {name for name in entries if name in beside and name != "torch"}
        differing = [name for name in shared if beside[name] != entries[name]]
        if differing:
            raise UserError(f"{lock.path} and {lock.beyond} resolve {', '.join(differing)} differently")
        return {name: entry for name, entry in entries.items() if name not in shared}
    return {name: entry for name, entry in entries.items() if not (lock.torch and name == "torch")}


def _build_system() -> list[str]:
    return list(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["build-system"]["requires"])


def _entries(lock: Lock) -> dict[str, str]:
    """Returns the entries of a lock by name, including those of the lock that it is installed with."""
    plain = Lock(lock.path, lock.extras)
    requirements = [line for line in requirements_of(plain) if Requirement(line).name != WITHOUT_REQUIREMENTS]
    without_requirements = [line for line in requirements_of(plain) if Requirement(line).name == WITHOUT_REQUIREMENTS]
    if lock.torch:
        # `===` compares strings: 2.13.0 is the CUDA build, 2.13.0+cpu the CPU build.
        build = {"cpu": "+cpu", "cuda": ""}[lock.torch]
        requirements = [
            line.replace("torch==", "torch===") + build if Requirement(line).name == "torch" else line
            for line in requirements
        ]
    return _resolve(tuple(requirements)) | _resolve(tuple(without_requirements), "--no-deps")


@functools.cache
def _resolve(requirements: tuple[str, ...], *options: str) -> dict[str, str]:
    """Returns `name==version --hash=…` by canonical name, for requirements and their dependencies."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *options]
        command += ["--prefer-binary", "--constraint", str(ROOT / TESTED_VERSIONS), "--report", str(report)]
        result = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
        if result.returncode:
            errors = " ".join(line for line in result.stderr.splitlines() if line.startswith("ERROR"))
            raise UserError(f"pip cannot resolve {' '.join(requirements)}: {errors}")
        installs = json.loads(report.read_text())["install"]
    entries: dict[str, str] = {}
    for item in installs:
        name, version = canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"]
        entries[name] = f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}"
    return entries


def _rendered(path: Path, direct: Mapping[str, str], entries: Mapping[str, str]) -> str:
    head = [f"# {path.parent.name}/{path.name}: written by `make images-lock` from pyproject.toml; not edited by hand."]
    head += ["# Files for Python 3.11 on Linux x86_64. Asked for directly, and why:"]
    head += [f"{DIRECT}{line}  {reason}".rstrip() for line, reason in direct.items()]
    return "\n".join([*head, *(entries[name] for name in sorted(entries))]) + "\n"


def read(path: Path) -> dict[str, str]:
    """Returns the versions in a lock file by name; empty if the file does not exist.

    Args:
        path: Lock file, relative to the root of the repository.
    """
    file = ROOT / path
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pins = (line.split()[0].split("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, version in pins}
