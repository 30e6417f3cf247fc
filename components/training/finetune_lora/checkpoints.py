"""Checkpoints that are complete or ignored, in a folder that belongs to one training."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from transformers.trainer_utils import sort_checkpoints

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import ensure_writable, write_text

FINGERPRINT = "fingerprint.json"
MANIFEST = "files.json"
LOCK = "lock"
STAGING = "partial"
LOCK_TIMEOUT_SECONDS = 60.0  # a pod that is being replaced may still be running


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks a checkpoint folder against other trainings while the block runs.

    Args:
        folder: Checkpoint folder; created if absent.

    Raises:
        UserError: If it is not writable, or another training holds the lock for too long.
    """
    ensure_writable(folder, f"the checkpoint folder {folder}")
    with (folder / LOCK).open("a") as lock:
        waited = 0.0
        while not _try_lock(lock):
            if waited >= LOCK_TIMEOUT_SECONDS:
                raise UserError(
                    f"another training is writing its checkpoints to {folder}: wait until it ends, or set another "
                    "checkpoint_folder"
                )
            if not waited:
                print(f"waiting for another training to release {folder}", flush=True)
            time.sleep(1)
            waited += 1
        yield


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network volumes have no locks
        print(
            f"{lock.name} can't be locked ({error.strerror}): do not run two trainings with this checkpoint folder",
            flush=True,
        )
    return True


def claim_folder(folder: Path, fingerprint: Mapping[str, object]) -> None:
    """Checks that the folder's checkpoints belong to this training, and records its fingerprint there.

    Args:
        folder: Checkpoint folder; created if absent.
        fingerprint: Everything that determines the result: hashes of data and model, settings, package version.

    Raises:
        UserError: If the folder contains checkpoints of another training; the message names every difference.
    """
    file = folder / FINGERPRINT
    if not file.exists():
        refuse_foreign_checkpoints(str(folder), [path.name for path in folder.glob("*")])
    own = json.loads(json.dumps(fingerprint))
    if file.exists():
        found = json.loads(file.read_text())
        names = sorted({*own, *found})
        different = [
            f"{name}: {found.get(name)!r} there, {own.get(name)!r} here"
            for name in names
            if own.get(name) != found.get(name)
        ]
        if different:
            raise UserError(
                f"the checkpoints in {folder} belong to another training ({'; '.join(different)}). "
                "Set another checkpoint_folder, or remove this one to start from the beginning"
            )
    write_text(file, json.dumps(own, indent=2, sort_keys=True))


def refuse_foreign_checkpoints(place: str, names: Iterable[str]) -> None:
    """Refuses a folder with checkpoints but without a fingerprint: a training would remove files that are not its own.

    Args:
        place: Folder or URI.
        names: Names in it.

    Raises:
        UserError: If a name is one that a training writes.
    """
    foreign = sorted(name for name in names if name == STAGING or name.startswith("checkpoint-"))
    if foreign:
        raise UserError(
            f"{place} contains {', '.join(foreign)}, which this suite did not write (there is no {FINGERPRINT}). "
            "Set another checkpoint_folder, or move them away"
        )


def write_manifest(checkpoint: Path) -> None:
    """Records the size of every file and flushes all files to disk; `is_complete` compares the sizes."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    sizes = {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}
    write_text(checkpoint / MANIFEST, json.dumps(sizes))
    for file in [*files, checkpoint / MANIFEST, checkpoint]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def publish(staged: Path, folder: Path) -> Path:
    """Moves a complete checkpoint to its final place; an older one of the same step is replaced."""
    final = folder / staged.name
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    return final


def latest_complete(folder: Path) -> tuple[Path | None, list[Path]]:
    """Returns the newest complete checkpoint.

    Args:
        folder: Checkpoint folder.

    Returns:
        The checkpoint, or None; and the newer ones that are incomplete.
    """
    incomplete: list[Path] = []
    for name in reversed(sort_checkpoints(str(folder)) if folder.exists() else []):
        checkpoint = Path(name)
        if is_complete(checkpoint):
            return checkpoint, incomplete
        incomplete.append(checkpoint)
    return None, incomplete


def is_complete(checkpoint: Path) -> bool:
    """Returns whether a checkpoint has all files of its manifest, each with the recorded size."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
