"""Atomic writes of files and folders, and content hashes."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_finetune.components.shared.errors import UserError


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Writes a folder atomically: it gets its final name only if the block succeeds.

    Args:
        path: Final folder; an existing one is replaced.

    Yields:
        An empty temporary folder next to it, on the same file system.
    """
    final = Path(path)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if final.is_dir():
            shutil.rmtree(final)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically and creates its folder."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(final)
    finally:
        partial.unlink(missing_ok=True)


def content_hash(path: str | Path, pattern: str = "**/*") -> str:
    """Returns a hash of the names and contents of a folder's files.

    Args:
        path: Folder, or one file.
        pattern: Glob pattern of the files to include.

    Returns:
        `sha256:` and 64 hexadecimal digits; independent of where the folder is.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(file for file in root.glob(pattern) if file.is_file())
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = file.name if root.is_file() else file.relative_to(root).as_posix()
        total.update(f"{name}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def ensure_writable(folder: str | Path, what: str) -> None:
    """Creates a folder and checks that it is writable; a new volume may be writable by root only.

    Args:
        folder: Folder to create.
        what: Description of the folder for the error message.

    Raises:
        UserError: If the folder cannot be created or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{what} cannot be written to ({error.strerror}) by user {os.getuid()}, group {os.getgid()}. Give the "
            "volume to them, as the Job of manifests/components/writable-volumes does, or use another folder"
        ) from error
