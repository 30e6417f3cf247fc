"""Checkpoints that are whole or not seen, in a folder that belongs to one training."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from transformers.trainer_utils import sort_checkpoints

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import ensure_writable, write_text

FINGERPRINT = "fingerprint.json"
SEAL = "files.json"
LOCK = "lock"
STAGING = "partial"
WAIT_SECONDS = 60.0  # a pod that is being replaced may not have ended yet


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of a checkpoint folder while the block runs.

    Args:
        folder: Checkpoint folder; made if absent.

    Raises:
        UserError: If it can't be written to, or another training does not leave it in time.
    """
    ensure_writable(folder, f"the checkpoint folder {folder}")
    with (folder / LOCK).open("a") as lock:
        waited = 0.0
        while not _locked(lock):
            if waited >= WAIT_SECONDS:
                raise UserError(
                    f"another training is writing its checkpoints to {folder}: wait for its end, or choose another "
                    "checkpoint_folder"
                )
            if not waited:
                print(f"waiting for another training to leave {folder}", flush=True)
            time.sleep(1)
            waited += 1
        yield


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network volumes have no locks
        print(f"{lock.name} can't be locked ({error.strerror}): let no two trainings write there at once", flush=True)
    return True


def claim(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Makes the folder this training's own.

    Args:
        folder: Checkpoint folder; made if absent.
        fingerprint: What decides the result: hashes of data and model, settings, package version.

    Raises:
        UserError: If the folder holds checkpoints of another training, naming every difference.
    """
    file = folder / FINGERPRINT
    if not file.exists():
        refuse_others(str(folder), [path.name for path in folder.glob("*")])
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
                "Choose another checkpoint_folder, or remove this one to start anew"
            )
    write_text(file, json.dumps(own, indent=2, sort_keys=True))


def refuse_others(place: str, names: Iterable[str]) -> None:
    """Refuses a place without a fingerprint that holds checkpoints: they aren't ours, and a training removes old ones.

    Args:
        place: The place.
        names: What it holds.

    Raises:
        UserError: If a name is one that a training writes to.
    """
    others = sorted(name for name in names if name == STAGING or name.startswith("checkpoint-"))
    if others:
        raise UserError(
            f"{place} holds {', '.join(others)}, which are not of this suite (there is no {FINGERPRINT} beside them). "
            "Choose another checkpoint_folder, or move them away"
        )


def seal(checkpoint: Path) -> None:
    """Records every file's size and flushes all to disk, so that a torn checkpoint can be told from a whole one."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
    sizes = {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}
    write_text(checkpoint / SEAL, json.dumps(sizes))
    for file in [*files, checkpoint / SEAL, checkpoint]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def publish(staged: Path, folder: Path) -> Path:
    """Gives a sealed checkpoint its final name; an older one of the same step is replaced."""
    final = folder / staged.name
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    return final


def latest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """Returns the newest checkpoint whose files all have their recorded sizes.

    Args:
        folder: Checkpoint folder.

    Returns:
        The checkpoint, or None, and the newer ones that were torn and passed over.
    """
    torn: list[Path] = []
    for name in reversed(sort_checkpoints(str(folder)) if folder.exists() else []):
        checkpoint = Path(name)
        if is_whole(checkpoint):
            return checkpoint, torn
        torn.append(checkpoint)
    return None, torn


def is_whole(checkpoint: Path) -> bool:
    """Tells whether a checkpoint has all its files, each of its recorded size."""
    try:
        sizes = json.loads((checkpoint / SEAL).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
