"""What the images carry: a bill of materials for each, and what is known against it.

`python -m images.inventory sbom` or `audit`; both work from the locks, so that nothing need be built. The base image's
Debian packages are not in them: its publisher lists those.
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

# An image and the locks that it is installed from.
IMAGES = {
    "control": ("control/requirements.txt",),
    "data": ("data/requirements.txt",),
    "train-cuda": ("train/requirements.txt", "train/torch-cuda.txt"),
    "train-cpu": ("train/requirements.txt", "train/torch-cpu.txt"),
}
BILLS = lock.ROOT / "build" / "sbom"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="What the images carry.")


@dataclass(frozen=True)
class Findings:
    """What an audit of one image found.

    Attributes:
        checked: Packages that the advisory service knows.
        unchecked: Packages that it could not be asked about.
        advisories: Lines of package, version, advisory and the versions that mend it.
    """

    checked: int
    unchecked: int
    advisories: list[str]


def locked(image: str) -> str:
    """Returns an image's locks as one text."""
    return "".join((lock.ROOT / "images" / path).read_text(encoding="utf-8") for path in IMAGES[image])


def write_bill(image: str, folder: Path = BILLS) -> Path:
    """Writes an image's bill of materials in CycloneDX's JSON.

    Args:
        image: Key of `IMAGES`.
        folder: Folder of the file.

    Returns:
        The file.

    Raises:
        UserError: If the tool fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image}.cdx.json"
    command = ["cyclonedx_py", "requirements", "--pyproject", str(lock.PYPROJECT), "--output-reproducible"]
    result = _run([*command, "--output-format", "JSON", "--output-file", str(path), "-"], locked(image))
    if result.returncode:
        raise UserError(f"no bill of materials for {image}: {result.stderr.strip()}")
    return path


def findings(report: dict[str, Any]) -> Findings:
    """Reads pip-audit's report.

    Args:
        report: Its JSON.

    Returns:
        What was checked and what was found; a package that could not be looked up counts as unchecked, not as clean.
    """
    packages = report["dependencies"]
    checked = [package for package in packages if "skip_reason" not in package]
    advisories = []
    for package in checked:
        for known in package["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "nothing yet"
            advisories.append(f"{package['name']} {package['version']}: {known['id']}, mended in {mended}")
    return Findings(len(checked), len(packages) - len(checked), advisories)


def look_up(image: str) -> Findings | None:
    """Asks the advisory service about an image's packages; returns None where it cannot be reached."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        # The service knows releases, not builds of them.
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
    """Report what is known against the locked versions; without a network, say so and go on."""
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
