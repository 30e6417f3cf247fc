"""Stores the weights in the artifact's folder and checks the free disk space."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from llm_finetune.components.shared.errors import UserError


def copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    """Copies files from one folder to another."""
    for name in names:
        shutil.copyfile(source / name, target / name)


def link_or_copy(names: Iterable[str], source: Path, target: Path) -> None:
    """Stores weights in an artifact's folder.

    They become hard links where the file system allows it, which takes no time and no space. Like the files of the
    Hub's cache, they must not be edited in place.

    Args:
        names: Names of the files.
        source: Folder that contains them.
        target: Folder to store them in.

    Raises:
        UserError: If there is not enough space for a copy.
    """
    rest = [name for name in names if not _link((source / name).resolve(), target / name)]
    check_space(target, sum((source / name).stat().st_size for name in rest), "the step's output")
    copy_files(rest, source, target)


def check_space(folder: str | Path, needed: int, label: str) -> None:
    """Checks the free space before files are written.

    Args:
        folder: Folder to write to; it need not exist yet.
        needed: Bytes to write.
        label: Name of the folder in the message.

    Raises:
        UserError: If the disk has less free space.
    """
    existing = Path(folder)
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"no space left on the device: {label} needs {needed / 1e9:.2f} GB for the weights and has "
            f"{free / 1e9:.2f} GB. Give the step a larger volume or ephemeral storage, or set store to reference"
        )


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True
