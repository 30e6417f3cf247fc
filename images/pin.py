"""Pins the base image in the Containerfiles to its digest in the registry."""

import re
from pathlib import Path

import requests

from llm_finetune.components.shared.errors import UserError

IMAGES = Path(__file__).parent
BASE = re.compile(r"^ARG BASE=(?P<name>[^:@\s]+(?::\d+[^:@\s]*)?):(?P<tag>[^@\s]+)(?:@(?P<digest>\S+))?$", re.MULTILINE)
# The index of all platforms comes first, so that a pinned base image works on each platform.
MEDIA_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
TIMEOUT_SECONDS = 30


def write(folder: Path = IMAGES) -> str:
    """Pins the base image of all Containerfiles to the current digest of its tag.

    Args:
        folder: Parent folder of the image families.

    Returns:
        The pinned reference.

    Raises:
        UserError: If the registry returns no digest; no file is changed then.
    """
    files = sorted(folder.glob("*/Containerfile"))
    found = {file: BASE.search(file.read_text(encoding="utf-8")) for file in files}
    bases = {(match["name"], match["tag"]) for match in found.values() if match}
    if len(bases) != 1 or None in found.values():
        raise UserError(f"the Containerfiles in {folder} do not have the same base image: {sorted(bases)}")
    name, tag = bases.pop()
    pinned = f"{name}:{tag}@{digest(name, tag)}"
    for file in files:
        text = BASE.sub(f"ARG BASE={pinned}", file.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
    return pinned


def digest(name: str, tag: str) -> str:
    """Returns the digest of a tag in a registry.

    Args:
        name: Registry and repository, such as docker.io/library/python.
        tag: The tag.

    Returns:
        `sha256:…`.

    Raises:
        UserError: If the registry cannot be reached, or the tag does not exist.
    """
    registry, _, repository = name.partition("/")
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    scheme = "http" if host.split(":")[0] in ("localhost", "127.0.0.1") else "https"
    url = f"{scheme}://{host}/v2/{repository}/manifests/{tag}"
    try:
        response = requests.head(url, headers={"Accept": ", ".join(MEDIA_TYPES)}, timeout=TIMEOUT_SECONDS)
        if response.status_code == 401:
            headers = {"Accept": ", ".join(MEDIA_TYPES), "Authorization": f"Bearer {_token(response)}"}
            response = requests.head(url, headers=headers, timeout=TIMEOUT_SECONDS)
        response.raise_for_status()
        return str(response.headers["Docker-Content-Digest"])
    except (requests.RequestException, KeyError) as error:
        raise UserError(f"cannot read the digest of {name}:{tag} from {host}: {error}. No file was changed") from error


def _token(unauthorized: requests.Response) -> str:
    """Requests the token for anonymous access that a registry's 401 response refers to."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', unauthorized.headers.get("WWW-Authenticate", "")))
    response = requests.get(fields.pop("realm"), params=fields, timeout=TIMEOUT_SECONDS)
    response.raise_for_status()
    return str(response.json()["token"])
