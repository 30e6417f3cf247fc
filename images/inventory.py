"""Bill of materials and known vulnerabilities of the images.

`python -m images.inventory sbom` or `audit`; both read the locks, so no image is built. Debian packages of the base
image are not included.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from images import lock
from llm_finetune.components.shared.errors import UserError

# Images, and the locks of each.
IMAGES = {
    "control": ("control/requirements.txt",),
    "data": ("data/requirements.txt",),
    "train-cuda": ("train/requirements.txt", "train/torch-cuda.txt"),
    "train-cpu": ("train/requirements.txt", "train/torch-cpu.txt"),
}
BILLS = lock.ROOT / "build" / "sbom"
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, help="Bill of materials and vulnerabilities of the images."
)


@dataclass(frozen=True)
class Findings:
    """Result of the audit of one image.

    Attributes:
        checked: Number of packages known to the advisory service.
        unchecked: Number of packages not known to it.
        advisories: Lines with package, version, advisory and fixed versions.
    """

    checked: int
    unchecked: int
    advisories: list[str]


def locked(image: str) -> str:
    """Returns the locks of an image as one text."""
    return "".join((lock.ROOT / "images" / path).read_text(encoding="utf-8") for path in IMAGES[image])


def write_bill(image: str, folder: Path = BILLS) -> Path:
    """Writes the bill of materials of an image in CycloneDX JSON.

    Args:
        image: Key of `IMAGES`.
        folder: Output folder.

    Returns:
        The file.

    Raises:
        UserError: If cyclonedx_py fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image}.cdx.json"
    command = ["cyclonedx_py", "requirements", "--pyproject", str(lock.PYPROJECT), "--output-reproducible"]
    result = _run([*command, "--output-format", "JSON", "--output-file", str(path), "-"], locked(image))
    if result.returncode:
        raise UserError(f"no bill of materials for {image}: {result.stderr.strip()}")
    return path


def findings(report: dict[str, Any]) -> Findings:
    """Reads the report of pip-audit.

    Args:
        report: Parsed JSON report.

    Returns:
        The findings; skipped packages count as unchecked.
    """
    packages = report["dependencies"]
    checked = [package for package in packages if "skip_reason" not in package]
    advisories = []
    for package in checked:
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            advisories.append(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    return Findings(len(checked), len(packages) - len(checked), advisories)


def look_up(image: str) -> Findings | None:
    """Audits the packages of an image; returns None if the advisory service cannot be reached."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        # The service knows releases without local version labels.
        requirements.write(locked(image).replace("+cpu", ""))
        requirements.flush()
        options = ["--requirement", requirements.name, "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
        result = _run(["pip_audit", *options, "--format", "json"])
    try:
        return findings(json.loads(result.stdout))
    except json.JSONDecodeError:
        return None


def _run(module: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *module]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


@app.command()
def sbom() -> None:
    """Write a bill of materials per image."""
    try:
        lock.check()
        for image in IMAGES:
            print(write_bill(image).relative_to(lock.ROOT))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def audit(strict: bool = typer.Option(False, help="Fail if an advisory is found.")) -> None:
    """Report known vulnerabilities of the locked versions; without a network, print a message."""
    known = 0
    for image in IMAGES:
        found = look_up(image)
        if found is None or not found.checked:
            print(f"{image}: not checked, the advisory service cannot be reached")
            continue
        known += len(found.advisories)
        unknown = f", {found.unchecked} unknown to the service" if found.unchecked else ""
        print(f"{image}: {found.checked} packages checked{unknown}, {len(found.advisories)} advisories")
        for line in found.advisories:
            print(f"  {line}")
    raise typer.Exit(1 if strict and known else 0)


if __name__ == "__main__":
    app()
