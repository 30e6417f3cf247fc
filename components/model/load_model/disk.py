"""Room for the weights, and how they get into the artifact's folder."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from llm_finetune.components.shared.errors import UserError


def copy_files(names: Iterable[str], origin: Path, target: Path) -> None:
    """Copies small files."""
    for name in names:
        shutil.copyfile(origin / name, target / name)


def place_weights(names: Iterable[str], origin: Path, target: Path) -> None:
    """Puts weights into an artifact's folder.

    They become hard links where the file system allows it, so that a copy costs neither time nor space; like the files
    of the Hub's cache, they must not be edited in place.

    Args:
        names: Files to place.
        origin: Folder to take them from.
        target: Folder to put them into.
    """
    rest = [name for name in names if not _link((origin / name).resolve(), target / name)]
    check_space(target, sum((origin / name).stat().st_size for name in rest), "the step's output")
    copy_files(rest, origin, target)


def check_space(folder: str | Path, needed: int, what: str) -> None:
    """Refuses to begin what would fill the disk.

    Args:
        folder: Where the bytes shall go; it need not exist yet.
        needed: Bytes.
        what: What the folder is, for the message.
    """
    existing = Path(folder)
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"no space left on the device: {what} needs {needed / 1e9:.2f} GB for the weights and has "
            f"{free / 1e9:.2f} GB. Give the step a larger volume or ephemeral storage, or set store to reference"
        )


def _link(origin: Path, target: Path) -> bool:
    try:
        os.link(origin, target)
    except OSError:  # another file system, or one without links
        return False
    return True
