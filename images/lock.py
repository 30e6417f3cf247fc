"""Writes the images' locks from pyproject.toml, and tells whether they still fit it.

pyproject.toml says what each image needs and why; a lock says which exact files that means. Versions are those of
images/local/requirements.txt, so that an image runs what the tests ran.
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
DIRECT = "#   "  # begins a line that names a direct requirement
# Inside a step kfp imports nothing else, so that none of its own requirements need be in an image.
ALONE = "kfp"


@dataclass(frozen=True)
class Lock:
    """What one lock file is made from.

    Attributes:
        path: File, from the repository's root.
        extras: Extras of pyproject.toml; the package's own requirements always belong to it.
        torch: Build of PyTorch to resolve with; empty where there is none.
        beyond: Lock whose packages are left out, because it is installed beside this one.
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


def wanted(lock: Lock) -> dict[str, str]:
    """Returns the direct requirements of a lock file and why each is there, as pyproject.toml has them.

    Args:
        lock: The lock.

    Returns:
        Reasons by requirement, such as `{"jinja2>=3.1,<4": "report pages"}`.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    listed = list(project["dependencies"]) + [line for extra in lock.extras for line in optional[extra]]
    listed += [line for line in optional["cli"] if Requirement(line).name == ALONE]
    reasons = _reasons()
    if lock.beyond:
        beside = next(other for other in LOCKS if other.path == lock.beyond)
        listed = [line for line in listed if line not in wanted(beside)]
    elif lock.torch:
        listed = [line for line in listed if Requirement(line).name != "torch"]
    return {line: reasons.get(line, "") for line in listed}


def _reasons() -> dict[str, str]:
    """Returns the comment beside each requirement in pyproject.toml."""
    lines = PYPROJECT.read_text(encoding="utf-8").splitlines()
    found = (re.match(r'\s*"([^"]+)",\s*#\s*(.+)', line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def check() -> None:
    """Refuses locks that do not fit pyproject.toml.

    Raises:
        UserError: Naming the file and the requirements that differ.
    """
    for lock in LOCKS:
        differing = _differing(lock)
        if differing:
            raise UserError(
                f"{lock.path} was not made from this pyproject.toml: {', '.join(differing)} (+ asked for, - locked). "
                "Run `make images-lock`"
            )


def _differing(lock: Lock) -> list[str]:
    """Returns the direct requirements that only pyproject.toml or only the lock has."""
    file = ROOT / lock.path
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    locked = {line.removeprefix(DIRECT).split("  ")[0] for line in lines if line.startswith(DIRECT)}
    asked = set(wanted(lock))
    return [f"+ {line}" for line in sorted(asked - locked)] + [f"- {line}" for line in sorted(locked - asked)]


def _moved(lock: Lock) -> list[str]:
    """Returns the packages of a lock that the tests run in another version."""
    tested = read(TESTED_VERSIONS)
    return [name for name, version in read(lock.path).items() if tested.get(name, version) != version.partition("+")[0]]


def write() -> list[Path]:
    """Resolves the locks that do not fit pyproject.toml or the tested versions any more, and writes them.

    Returns:
        The files that were written.

    Raises:
        UserError: If this is not the images' platform, or pip finds no solution.
    """
    here = (sys.version_info[:2], platform.system(), platform.machine())
    if here != ((3, 11), "Linux", "x86_64"):
        raise UserError(f"locks hold the files of the images' platform, Python 3.11 on Linux x86_64; this is {here}")
    stale = {lock.path for lock in LOCKS if _differing(lock) or _moved(lock)}
    # Those of one folder are installed together, and of one resolution.
    stale = {lock.path for lock in LOCKS if lock.path.parent in {path.parent for path in stale}}
    texts: dict[Path, str] = {}
    if not (ROOT / BUILD_SYSTEM).is_file() or read(BUILD_SYSTEM).items() - read(TESTED_VERSIONS).items():
        wheels = tuple(_build_system())
        texts[BUILD_SYSTEM] = _rendered(BUILD_SYSTEM, dict.fromkeys(wheels, ""), _resolve(wheels))
    for lock in LOCKS:
        if lock.path in stale:
            texts[lock.path] = _rendered(lock.path, wanted(lock), _own_entries(lock))
    for path, text in texts.items():
        (ROOT / path).write_text(text, encoding="utf-8")
    return list(texts)


def _own_entries(lock: Lock) -> dict[str, str]:
    """Returns a lock's entries by name, without those of the lock that it is installed beside."""
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
    """Returns a lock's entries by name, those of a lock that lies beside it included."""
    plain = Lock(lock.path, lock.extras)
    requirements = [line for line in wanted(plain) if Requirement(line).name != ALONE]
    alone = [line for line in wanted(plain) if Requirement(line).name == ALONE]
    if lock.torch:
        # `===` compares text: 2.13.0 is the build with CUDA, 2.13.0+cpu the one without.
        build = {"cpu": "+cpu", "cuda": ""}[lock.torch]
        requirements = [
            line.replace("torch==", "torch===") + build if Requirement(line).name == "torch" else line
            for line in requirements
        ]
    return _resolve(tuple(requirements)) | _resolve(tuple(alone), "--no-deps")


@functools.cache
def _resolve(requirements: tuple[str, ...], *options: str) -> dict[str, str]:
    """Returns `name==version --hash=…` by canonical name for requirements and all that they require."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *options]
        command += ["--prefer-binary", "--constraint", str(ROOT / TESTED_VERSIONS), "--report", str(report)]
        result = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
        if result.returncode:
            said = " ".join(line for line in result.stderr.splitlines() if line.startswith("ERROR"))
            raise UserError(f"pip cannot resolve {' '.join(requirements)}: {said}")
        installs = json.loads(report.read_text())["install"]
    entries = {}
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
    """Returns the versions of a lock file by name, none if there is no such file.

    Args:
        path: Lock file, from the repository's root.
    """
    file = ROOT / path
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pins = (line.split()[0].split("==") for line in lines if line and not line.startswith("#"))
    return {name: version for name, version in pins}
