"""Writes the digest of the base image into the Containerfiles, as its registry gives it."""

import re
from pathlib import Path

import requests

from llm_finetune.components.shared.errors import UserError

IMAGES = Path(__file__).parent
BASE = re.compile(r"^ARG BASE=(?P<name>[^:@\s]+(?::\d+[^:@\s]*)?):(?P<tag>[^@\s]+)(?:@(?P<digest>\S+))?$", re.MULTILINE)
# Kinds of manifest: the index over all platforms first, so that a pinned base builds on each of them.
KINDS = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
SECONDS = 30


def write(folder: Path = IMAGES) -> str:
    """Pins the base of all Containerfiles to the digest that its tag has now.

    Args:
        folder: Folder of the families' folders.

    Returns:
        The pinned reference.

    Raises:
        UserError: If the registry gives no digest; nothing is written then.
    """
    files = sorted(folder.glob("*/Containerfile"))
    found = {file: BASE.search(file.read_text(encoding="utf-8")) for file in files}
    bases = {(match["name"], match["tag"]) for match in found.values() if match}
    if len(bases) != 1 or None in found.values():
        raise UserError(f"the Containerfiles in {folder} do not name one base image: {sorted(bases)}")
    name, tag = bases.pop()
    pinned = f"{name}:{tag}@{digest(name, tag)}"
    for file in files:
        text = BASE.sub(f"ARG BASE={pinned}", file.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
    return pinned


def digest(name: str, tag: str) -> str:
    """Asks a registry for the digest of a tag.

    Args:
        name: Registry and repository, such as docker.io/library/python.
        tag: The tag.

    Returns:
        `sha256:…`.

    Raises:
        UserError: If the registry cannot be reached, or has no such tag.
    """
    registry, _, repository = name.partition("/")
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    scheme = "http" if host.split(":")[0] in ("localhost", "127.0.0.1") else "https"
    address = f"{scheme}://{host}/v2/{repository}/manifests/{tag}"
    try:
        answer = requests.head(address, headers={"Accept": ", ".join(KINDS)}, timeout=SECONDS)
        if answer.status_code == 401:
            headers = {"Accept": ", ".join(KINDS), "Authorization": f"Bearer {_token(answer)}"}
            answer = requests.head(address, headers=headers, timeout=SECONDS)
        answer.raise_for_status()
        return answer.headers["Docker-Content-Digest"]
    except (requests.RequestException, KeyError) as error:
        raise UserError(f"no digest of {name}:{tag} from {host}: {error}. Nothing was pinned") from error


def _token(refusal: requests.Response) -> str:
    """Gets the token for anonymous reading that a registry's refusal points to."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', refusal.headers.get("WWW-Authenticate", "")))
    answer = requests.get(fields.pop("realm"), params=fields, timeout=SECONDS)
    answer.raise_for_status()
    return str(answer.json()["token"])
