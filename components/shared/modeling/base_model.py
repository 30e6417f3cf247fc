"""The base model artifact: a folder with the weights, or a pinned reference that is downloaded on first use."""

import contextlib
import glob
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from llm_finetune.components.shared.errors import UserError, first_line
from llm_finetune.components.shared.progress import Progress

REFERENCE = "reference.json"
MIN_REPORTED_BYTES = 10_000_000  # smaller downloads print no progress
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files other than weights that are needed for training, serving or licensing; only those at the top of the repository.
NON_WEIGHT_FILES = [
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.tiktoken", "spiece.model", "sentencepiece*.model", "chat_template.*", INDEX, "README.md",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
]  # fmt: skip


def resolve(model_config: str | Path) -> tuple[str, str]:
    """Returns the folder with the weights of a `model_config` artifact; a reference is downloaded into its cache first.

    All cards of a run use the same revision of the base model. A commit of the Hub can't change. A folder is hashed
    once, by Load Base Model. Here, configuration and tokenizer are compared byte for byte with the artifact's copies,
    and the weights by size and modification time, because reading them in every card would take minutes. If something
    differs, all files are hashed again: a folder that was moved or mounted elsewhere is accepted, one that was modified
    is refused. A weight file that was modified without a change of size and modification time is not detected.

    Args:
        model_config: Folder written by Load Base Model.

    Returns:
        A local folder, and the commit (or content hash) that it holds; the latter is empty for a copy.

    Raises:
        UserError: If a referenced model cannot be downloaded, or differs from the pinned revision.
    """
    folder = Path(model_config)
    if not (folder / REFERENCE).is_file():
        return str(folder), ""
    reference = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
    name, revision, files = reference["model_name"], reference["revision"], reference["files"]
    if revision.startswith("sha256:"):
        if not _is_unchanged(Path(name), folder, files, reference.get("stamps", {})):
            verify_revision(name, files, revision)
        return name, revision
    try:
        return str(download(name, revision, files, reference["cache_dir"])), revision
    except UserError as error:
        raise UserError(
            f"{error}. Load Base Model stored the weights in {reference['cache_dir']}: mount the same volume here; "
            "if it was emptied, run that card again with caching disabled"
        ) from error


def non_weight_files(names: Iterable[str]) -> list[str]:
    """Returns the model's files other than weights, sorted."""
    return sorted(
        name for name in names if any(fnmatch(name, pattern) for pattern in NON_WEIGHT_FILES) and "/" not in name
    )


def download(name: str, revision: str, files: Iterable[str], cache_dir: str) -> Path:
    """Downloads files of a Hub repository into the cache; if the Hub is unreachable, takes them from the cache.

    Args:
        name: Hub id.
        revision: Branch, tag or commit.
        files: Names of the files.
        cache_dir: Hub cache; empty for huggingface_hub's own.

    Returns:
        The snapshot's folder, with all the files.

    Raises:
        UserError: If a file is missing, or the Hub refuses the download.
    """
    wanted = sorted(files)
    with hub_errors(name, revision):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[glob.escape(file) for file in wanted],
                cache_dir=cache_dir or None,
                token=hub_token(),
                tqdm_class=DownloadProgress,
            )
        )
    missing = [file for file in wanted if not (folder / file).exists()]
    if missing:
        raise UserError(f"{name} at {revision} has no {', '.join(missing)}, neither on the Hub nor in {folder}")
    return folder


def verify_revision(folder: str | Path, files: Iterable[str], revision: str) -> None:
    """Checks the hash of a folder's files.

    Args:
        folder: The folder.
        files: Names of the files.
        revision: The expected `files_revision`.

    Raises:
        UserError: If a file is missing, or the hash differs.
    """
    try:
        found = files_revision(folder, files)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; the run was pinned to {revision} of {folder}") from None
    if found != revision:
        raise UserError(
            f"the model in {folder} is {found}, but the requested revision is {revision}: its files have changed. "
            "Restore the files, or leave revision empty to use the folder as it is"
        )


def files_revision(folder: str | Path, files: Iterable[str]) -> str:
    """Returns `sha256:` and a hash over names and bytes of files: the revision of a model in a local folder."""
    whole = hashlib.sha256()
    for file in sorted(files):
        with (Path(folder) / file).open("rb") as stream:
            whole.update(f"{file}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def file_stamps(folder: str | Path, files: Iterable[str]) -> dict[str, list[int]]:
    """Returns the size in bytes and the modification time in nanoseconds of each file."""
    found = {file: (Path(folder) / file).stat() for file in files}
    return {file: [entry.st_size, entry.st_mtime_ns] for file, entry in found.items()}


def _is_unchanged(origin: Path, copies: Path, files: list[str], stamps: dict[str, list[int]]) -> bool:
    """Returns whether the files are those that Load Base Model hashed, judged without reading the weights."""
    try:
        same = all((origin / file).read_bytes() == (copies / file).read_bytes() for file in non_weight_files(files))
        return same and file_stamps(origin, files) == stamps
    except FileNotFoundError:
        return False


def commit_of(model_name: str, revision: str) -> str:
    """Returns the commit that a revision of a Hub model refers to now; empty for a folder, and in offline mode.

    Args:
        model_name: Hub id or folder.
        revision: Branch, tag or commit; empty for the default branch.

    Raises:
        UserError: If the model or revision does not exist, or the Hub is unreachable.
    """
    folder = model_name.startswith(("/", ".", "~")) or Path(model_name).is_dir()
    if folder or constants.HF_HUB_OFFLINE:
        return ""
    with hub_errors(model_name, revision):
        return HfApi(token=hub_token()).model_info(model_name, revision=revision or None).sha or ""


def hub_token() -> str | bool:
    """Returns the token in HF_TOKEN; without one False, so that no token of a home folder is sent."""
    return os.environ.get("HF_TOKEN") or False


@contextlib.contextmanager
def hub_errors(name: str, revision: str = "") -> Iterator[None]:
    """Raises errors of the Hub as UserError with a message that says what to do.

    Args:
        name: Hub id, for the message.
        revision: Revision, for the message.
    """
    place = f"{constants.ENDPOINT}/{name}"
    if hub_token():
        access = "the account of the token in HF_TOKEN has no access to it"
    else:
        access = "no token was sent (set HF_TOKEN from a secret)"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{name} is gated, and {access}. Accept its terms at {place}, then run again") from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision {revision!r}: see {place}/commits/main, or leave revision empty"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no model {name!r} at {constants.ENDPOINT}, or it is private and {access}. "
            "Check the spelling (owner/name), or give a folder"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(_unreachable_message(name, place, error)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = access if status in (401, 403) else "try again later"
        raise UserError(f"{place} returned status {status}: {hint} ({first_line(error)})") from error
    except EntryNotFoundError as error:
        raise UserError(f"{name} lacks a file: {first_line(error)}") from error
    except HTTPError as error:  # the connection itself failed
        raise UserError(_unreachable_message(name, place, error)) from error


def _unreachable_message(name: str, place: str, error: BaseException) -> str:
    return (
        f"{place} is unreachable and the cache does not contain all files of {name} ({first_line(error)}). "
        "Check the network or HF_ENDPOINT, or put the model into a folder or volume and set model_name to that"
    )


class DownloadProgress(tqdm):
    """Prints the progress of a download as lines of the card's log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the progress bar.

        Args:
            *args: tqdm's.
            **kwargs: tqdm's; of the bars that the Hub client creates, only the one for bytes on disk is shown.
        """
        self._lines: Progress | None = None
        kwargs.pop("name", None)
        kwargs["file"] = io.StringIO()  # no cursor movements in the log
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Prints a line if one is due."""
        if self.unit != "B" or not str(self.desc).startswith("Reconstruct") or (self.total or 0) < MIN_REPORTED_BYTES:
            return
        megabytes = round(self.total / 1e6)
        if self._lines is None:
            self._lines = Progress("download", megabytes, "MB")
        self._lines.total = megabytes  # increases as the sizes of more files become known
        self._lines.update(min(round(self.n / 1e6), megabytes))
