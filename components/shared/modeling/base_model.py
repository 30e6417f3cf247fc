"""The base model as later cards find it: a folder with the weights, or a pinned reference, fetched on first use."""

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

from huggingface_hub import constants, snapshot_download
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
SHOWN_FROM = 10_000_000  # bytes; a smaller download is over before a line would be read
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Everything beside the weights that a later card, a server or a lawyer reads; only files at the top of the repository.
SMALL_FILES = [
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.tiktoken", "spiece.model", "sentencepiece*.model", "chat_template.*", INDEX, "README.md",
    "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
]  # fmt: skip


def resolve(model_config: str | Path) -> tuple[str, str]:
    """Returns where the weights of a `model_config` artifact lie; a reference is fetched into its cache first.

    A run works on one state of its base. A commit of the Hub can't change. Of a folder, Load Base Model hashes every
    byte once; here, configuration and tokenizer are compared byte for byte with the artifact's own copies, and the
    weights by size and time of last change, as reading them all in every card would take minutes. Only where one of
    these differs, all is hashed again, so that a folder which was moved or mounted elsewhere passes, and one that was
    changed does not. A weight file that was changed and given its old size and time again goes unnoticed.

    Args:
        model_config: Folder written by Load Base Model.

    Returns:
        A local folder, and the commit (or content hash) that it holds; the latter is empty for a copy.

    Raises:
        UserError: If a referenced model cannot be fetched, or is not any more what the reference was pinned to.
    """
    folder = Path(model_config)
    if not (folder / REFERENCE).is_file():
        return str(folder), ""
    reference = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
    name, revision, files = reference["model_name"], reference["revision"], reference["files"]
    if revision.startswith("sha256:"):
        if not _unchanged(Path(name), folder, files, reference.get("stamps", {})):
            verify_revision(name, files, revision)
        return name, revision
    try:
        return str(fetch(name, revision, files, reference["cache_dir"])), revision
    except UserError as error:
        raise UserError(
            f"{error}. Load Base Model left the weights in {reference['cache_dir']}: mount the same volume here; if it "
            "was emptied, run that card again without taking its earlier result"
        ) from error


def small_files(names: Iterable[str]) -> list[str]:
    """Returns the names that are not weights but belong to the model, sorted."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in SMALL_FILES) and "/" not in name)


def fetch(name: str, revision: str, files: Iterable[str], cache_dir: str) -> Path:
    """Downloads files of a Hub repository into the cache, or takes them from it when the Hub is out of reach.

    Args:
        name: Hub id.
        revision: Branch, tag or commit.
        files: Names of the files.
        cache_dir: Hub cache; empty for huggingface_hub's own.

    Returns:
        The snapshot's folder; every file is in it.
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
                tqdm_class=DownloadLines,
            )
        )
    missing = [file for file in wanted if not (folder / file).exists()]
    if missing:
        raise UserError(f"{name} at {revision} has no {', '.join(missing)}, neither on the Hub nor in {folder}")
    return folder


def verify_revision(folder: str | Path, files: Iterable[str], revision: str) -> None:
    """Refuses a folder whose files are not the pinned ones."""
    try:
        found = files_revision(folder, files)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is gone; the run was pinned to {revision} of {folder}") from None
    if found != revision:
        raise UserError(
            f"the model in {folder} is {found}, but {revision} was asked for: its files have changed. "
            "Put the old files back, or leave revision empty to take the folder as it is"
        )


def files_revision(folder: str | Path, files: Iterable[str]) -> str:
    """Returns `sha256:` and a hash over names and bytes of files; it stands in for the commit of a plain folder."""
    whole = hashlib.sha256()
    for file in sorted(files):
        with (Path(folder) / file).open("rb") as stream:
            whole.update(f"{file}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def file_stamps(folder: str | Path, files: Iterable[str]) -> dict[str, list[int]]:
    """Returns the size in bytes and the time of the last change in nanoseconds of each file."""
    found = {file: (Path(folder) / file).stat() for file in files}
    return {file: [entry.st_size, entry.st_mtime_ns] for file, entry in found.items()}


def _unchanged(origin: Path, copies: Path, files: list[str], stamps: dict[str, list[int]]) -> bool:
    """Tells whether files are those that Load Base Model saw, as far as that shows without reading the weights."""
    try:
        same = all((origin / file).read_bytes() == (copies / file).read_bytes() for file in small_files(files))
        return same and file_stamps(origin, files) == stamps
    except FileNotFoundError:
        return False


def hub_token() -> str | bool:
    """Returns the token of HF_TOKEN, set from a mounted secret; False sends none, whatever lies in a home folder."""
    return os.environ.get("HF_TOKEN") or False


@contextlib.contextmanager
def hub_errors(name: str, revision: str = "") -> Iterator[None]:
    """Turns the Hub's refusals into messages that say what to do.

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
            f"{name} has no revision {revision!r}: look at {place}/commits/main, or leave it empty"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no model {name!r} at {constants.ENDPOINT}, or it is private and {access}. "
            "Check the spelling (owner/name), or give a folder"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(_unreachable(name, place, error)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = access if status in (401, 403) else "try again later"
        raise UserError(f"{place} answered {status}: {hint} ({first_line(error)})") from error
    except EntryNotFoundError as error:
        raise UserError(f"{name} lacks a file: {first_line(error)}") from error
    except HTTPError as error:  # the connection itself failed
        raise UserError(_unreachable(name, place, error)) from error


def _unreachable(name: str, place: str, error: BaseException) -> str:
    return (
        f"{place} is out of reach and the cache does not hold all of {name} ({first_line(error)}). "
        "Check the network or HF_ENDPOINT, or put the model into a folder or volume and give that as model_name"
    )


class DownloadLines(tqdm):
    """Reports a download as progress lines of the card's log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes tqdm's arguments; of the bars that the Hub client opens, only that of bytes on disk is shown."""
        self._lines: Progress | None = None
        kwargs.pop("name", None)
        kwargs["file"] = io.StringIO()  # no cursor movements in the log
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Prints a line when one is due."""
        if self.unit != "B" or not str(self.desc).startswith("Reconstruct") or (self.total or 0) < SHOWN_FROM:
            return
        megabytes = round(self.total / 1e6)
        if self._lines is None:
            self._lines = Progress("download", megabytes, "MB")
        self._lines.total = megabytes  # grows while the sizes of further files become known
        self._lines.update(min(round(self.n / 1e6), megabytes))
