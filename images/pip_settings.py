"""pip settings of this machine for image builds: a pip.conf, CA certificates, and local folders."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.shared.errors import UserError

# Settings of package sources; other settings are not passed to a build.
KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout", "retries")
CERTIFICATES = "/run/certificates.crt"  # where the Containerfiles mount the secret of that name


@dataclass(frozen=True)
class PipSettings:
    """pip settings for a build.

    Attributes:
        text: Content of a pip.conf.
        certificates: File with CA certificates; None uses pip's default.
        folders: Local folders in the settings.
    """

    text: str
    certificates: Path | None
    folders: tuple[Path, ...]


def read() -> PipSettings:
    """Reads pip's settings from configuration files and PIP_… variables.

    Returns:
        The settings.

    Raises:
        UserError: If pip cannot read its settings.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UserError(f"pip cannot read its settings: {result.stderr.strip()}")
    return parse(result.stdout)


def parse(output: str) -> PipSettings:
    """Parses the output of `pip config list`.

    Args:
        output: Lines such as `global.index-url='https://…'`; a variable is `:env:.index-url='…'`.

    Returns:
        The settings; variables take precedence, as in pip.
    """
    values: dict[str, str] = {}
    for line in sorted(output.splitlines(), key=_rank):
        name, _, value = line.partition("=")
        values[name.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
    settings = {key: values[key] for key in KEYS if values.get(key)}
    certificates = Path(values["cert"]) if values.get("cert") else None
    if certificates:
        settings["cert"] = CERTIFICATES
    locations = [word.removeprefix("file://") for value in settings.values() for word in value.split()]
    folders = {
        _mount_point(Path(location)) for location in locations if location.startswith("/") and location != CERTIFICATES
    }
    text = "[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())
    return PipSettings(text, certificates, tuple(sorted(folders)))


def _rank(line: str) -> int:
    """Orders the scopes by precedence, as pip does: global, command section, variable."""
    return {"global": 0, "install": 1}.get(line.partition(".")[0], 2 if line.startswith(":env:") else -1)


def _mount_point(place: Path) -> Path:
    """Returns the folder to mount: an index named `simple` refers to files next to it."""
    return place.parent if place.name == "simple" else place
