"""Takes the exported folder to the Hub and to object storage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from llm_finetune.components.shared.base_model import first_line, hub_token
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.progress import Progress

MANIFEST = "manifest.json"
PROBE = ".llm-finetune-write-test"


def check_hub() -> None:
    """Refuses a missing or unknown token before the work begins."""
    if not hub_token():
        raise UserError("push_to_hub needs a token with write access in HF_TOKEN (set it from a secret)")
    try:
        HfApi(token=hub_token()).whoami()
    except HfHubHTTPError as error:
        raise UserError(f"{constants.ENDPOINT} does not accept the token in HF_TOKEN: {first_line(error)}") from error
    except HTTPError as error:
        raise UserError(f"{constants.ENDPOINT} is out of reach: {first_line(error)}") from error


def push(folder: Path, repository: str, private: bool, message: str) -> str:
    """Uploads a folder as one commit to a model repository, which is made when absent.

    Args:
        folder: The folder.
        repository: Hub id.
        private: Whether a new repository is private.
        message: Commit message.

    Returns:
        URL of the commit.
    """
    api = HfApi(token=hub_token())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "the token in HF_TOKEN may not write there" if status in (401, 403, 404) else "try again later"
        raise UserError(f"pushing to {repository} was answered with {status}: {hint} ({first_line(error)})") from error
    except HTTPError as error:
        raise UserError(f"pushing to {repository} broke off: {first_line(error)}. Run again to resume") from error
    return str(commit.commit_url)


def check_export(uri: str) -> None:
    """Refuses a place that can't be written to before the work begins."""
    system, root = _open(uri)
    try:
        system.makedirs(root, exist_ok=True)
        system.pipe_file(f"{root}/{PROBE}", b"")
        system.rm_file(f"{root}/{PROBE}")
    except Exception as error:  # every storage library raises types of its own
        raise _refused(uri, error) from error


def export(folder: Path, uri: str) -> str:
    """Copies a folder to a storage URI and checks what has arrived.

    The manifest is written last: where there is one, everything it names is there.

    Args:
        folder: The folder.
        uri: Such as `s3://bucket/models/address`.

    Returns:
        URI of the manifest.

    Raises:
        UserError: If the storage refuses, or a file has another size there.
    """
    system, root = _open(uri)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    megabytes, done = round(sum(sizes.values()) / 1e6), 0
    progress = Progress("export", megabytes, "MB")
    try:
        for name, size in sizes.items():
            parent = f"{root}/{name}".rpartition("/")[0]
            system.makedirs(parent, exist_ok=True)
            system.put_file(str(folder / name), f"{root}/{name}")
            done += size
            progress.update(min(round(done / 1e6), megabytes))
        system.invalidate_cache()
        arrived = {name: system.info(f"{root}/{name}")["size"] for name in sizes}
        wrong = [f"{name} ({arrived[name]} of {size} bytes)" for name, size in sizes.items() if arrived[name] != size]
        if wrong:
            raise UserError(f"the export to {uri} is not whole: {', '.join(wrong)}. Run again")
        system.pipe_file(f"{root}/{MANIFEST}", json.dumps(_manifest(folder, sizes), indent=2).encode())
    except UserError:
        raise
    except Exception as error:  # every storage library raises types of its own
        raise _refused(uri, error) from error
    return f"{uri.rstrip('/')}/{MANIFEST}"


def _open(uri: str) -> tuple[Any, str]:
    try:
        system, root = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise UserError(f"export_uri = {uri!r}: {first_line(error)}") from error
    return system, root.rstrip("/")


def _manifest(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    files = {}
    for name, size in sizes.items():
        with (folder / name).open("rb") as stream:
            files[name] = {"size": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    return {"files": files, "size": sum(sizes.values())}


def _refused(uri: str, error: Exception) -> UserError:
    return UserError(
        f"export_uri = {uri!r} can't be written: {type(error).__name__}: {first_line(error)}. Check the address and "
        "the credentials of the step's service account"
    )
