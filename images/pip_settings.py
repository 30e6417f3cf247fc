"""This machine's pip settings, as a build can take them over: a file, its certificates, and the folders it names."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.shared.errors import UserError

# Settings that say where packages come from; the rest of a machine's settings is no matter of a build's.
KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "timeout", "retries")
CERTIFICATES = "/run/certificates.crt"  # where the Containerfiles mount the secret of that name


@dataclass(frozen=True)
class PipSettings:
    """What a build needs in order to install as this machine does.

    Attributes:
        text: A pip.conf.
        certificates: File of certificate authorities, or None for pip's own.
        folders: Local folders that the settings name.
    """

    text: str
    certificates: Path | None
    folders: tuple[Path, ...]


def read() -> PipSettings:
    """Reads pip's settings from its files and from PIP_… variables.

    Returns:
        The settings.

    Raises:
        UserError: If pip cannot read them itself.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UserError(f"pip cannot read its settings: {result.stderr.strip()}")
    return parse(result.stdout)


def parse(listed: str) -> PipSettings:
    """Parses what `pip config list` prints.

    Args:
        listed: Lines such as `global.index-url='https://…'`; a variable is `:env:.index-url='…'`.

    Returns:
        The settings; variables win, as with pip.
    """
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=_rank):
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = " ".join(ast.literal_eval(value).split())
    chosen = {key: found[key] for key in KEYS if found.get(key)}
    certificates = Path(found["cert"]) if found.get("cert") else None
    if certificates:
        chosen["cert"] = CERTIFICATES
    places = [word.removeprefix("file://") for value in chosen.values() for word in value.split()]
    folders = {_mount_point(Path(place)) for place in places if place.startswith("/") and place != CERTIFICATES}
    text = "[global]\n" + "".join(f"{key} = {value}\n" for key, value in chosen.items())
    return PipSettings(text, certificates, tuple(sorted(folders)))


def _rank(line: str) -> int:
    """Orders the scopes as pip does: a command's own section over the global one, a variable over both."""
    return {"global": 0, "install": 1}.get(line.partition(".")[0], 2 if line.startswith(":env:") else -1)


def _mount_point(place: Path) -> Path:
    """Returns the folder to give to a build: an index named `simple` refers to files beside it."""
    return place.parent if place.name == "simple" else place
