"""Outputs that are whole or absent: written beside their place and renamed."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_finetune.components.shared.errors import UserError


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Gives a folder to write into that takes its final name only when the block succeeds.

    Args:
        path: The final folder. An existing one is replaced.

    Yields:
        An empty folder beside it, on the same file system.
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
    """Writes a text file whole or not at all, and makes its folder."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(final.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(final)
    finally:
        partial.unlink(missing_ok=True)


def content_hash(path: str | Path, pattern: str = "**/*") -> str:
    """Returns a hash of the names and bytes of a folder's files.

    Args:
        path: A folder, or one file.
        pattern: Which files of the folder count.

    Returns:
        `sha256:` and 64 hexadecimal digits; the same for the same files wherever they lie.
    """
    root = Path(path)
    files = [root] if root.is_file() else sorted(file for file in root.glob(pattern) if file.is_file())
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = file.name if root.is_file() else file.relative_to(root).as_posix()
        whole.update(f"{name}\0{digest}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def make_writable(folder: str | Path, what: str) -> None:
    """Makes a folder, or refuses one that cannot be written to, such as a new volume that belongs to root alone.

    Args:
        folder: The folder.
        what: What the folder is, for the message.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{what} cannot be written to ({error.strerror}) by user {os.getuid()}, group {os.getgid()}. Give the "
            "volume to them, as the Job of manifests/components/writable-volumes does, or take another folder"
        ) from error
