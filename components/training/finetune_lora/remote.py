"""Checkpoints in an object store: what a training leaves there, and what a new pod begins with."""

import json
import shutil
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_finetune.components.shared.errors import first_line
from llm_finetune.components.shared.object_stores import check_writable, explain_store_errors, open_store, upload_file
from llm_finetune.components.training.finetune_lora.checkpoints import FINGERPRINT, SEAL, is_whole, refuse_others

SETTING = "checkpoint_folder"
AGAIN = "or keep the checkpoints on a volume"


def local_folder(uri: str) -> Path:
    """Returns where the checkpoints of a place in a store lie while a training runs: the same in every pod."""
    return Path(tempfile.gettempdir()) / "llm-finetune-checkpoints" / sha256(uri.encode()).hexdigest()[:16]


class RemoteCheckpoints(TrainerCallback):
    """A copy of a checkpoint folder in an object store.

    A checkpoint's seal, which names its files and their sizes, is sent last and removed first: one without it, or with
    other sizes, is not whole.
    """

    def __init__(self, uri: str) -> None:
        """Opens the store.

        Args:
            uri: Such as `s3://bucket/checkpoints/address`.

        Raises:
            UserError: If no library knows such URIs.
        """
        self.uri = uri
        self._system, self._root = open_store(uri, SETTING)

    def fetch(self, folder: Path) -> None:
        """Brings the fingerprint and all whole checkpoints into a folder, and sees that the store can be written to.

        Args:
            folder: Folder of this pod; what an earlier training left in it goes, for the store alone counts.

        Raises:
            UserError: If the store refuses, or holds checkpoints of others.
        """
        for left in folder.glob("checkpoint-*"):
            shutil.rmtree(left)
        (folder / FINGERPRINT).unlink(missing_ok=True)
        with explain_store_errors(self.uri, SETTING, AGAIN):
            names = self._names()
            try:
                (folder / FINGERPRINT).write_bytes(self._system.cat_file(f"{self._root}/{FINGERPRINT}"))
            except FileNotFoundError:
                refuse_others(self.uri, names)
            check_writable(self._system, self._root)
            for name in names:
                self._fetch_one(name, folder)
        shutil.rmtree(folder / "fetched", ignore_errors=True)

    def push(self, folder: Path) -> None:
        """Makes the store hold what a folder holds.

        Args:
            folder: The folder.
        """
        self._send_file(folder / FINGERPRINT, FINGERPRINT)
        here, there = {path.name for path in folder.glob("checkpoint-*")}, set(self._names())
        for name in sorted(here - self._whole(there)):
            files = [path for path in sorted((folder / name).rglob("*")) if path.is_file() and path.name != SEAL]
            for path in [*files, folder / name / SEAL]:
                self._send_file(path, path.relative_to(folder).as_posix())
        for name in there - here:
            with suppress(FileNotFoundError):
                self._system.rm_file(f"{self._root}/{name}/{SEAL}")
            self._system.rm(f"{self._root}/{name}", recursive=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Copies a new checkpoint; a store that is out of reach for a while does not end the training."""
        if state.is_world_process_zero:
            try:
                self.push(Path(str(args.output_dir)))
            except Exception as error:  # every storage library raises types of its own
                print(
                    f"checkpoint {state.global_step} was not copied to {self.uri}: {type(error).__name__}: "
                    f"{first_line(error)}. The training goes on, and the next checkpoint is tried again",
                    flush=True,
                )

    def _names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if name.startswith("checkpoint-"))

    def _whole(self, names: set[str]) -> set[str]:
        return {name for name in names if self._system.exists(f"{self._root}/{name}/{SEAL}")}

    def _send_file(self, file: Path, name: str) -> None:
        upload_file(self._system, file, f"{self._root}/{name}")

    def _fetch_one(self, name: str, folder: Path) -> None:
        try:
            sizes: dict[str, int] = json.loads(self._system.cat_file(f"{self._root}/{name}/{SEAL}"))
        except FileNotFoundError:
            print(f"{self.uri}/{name} is torn (the process was stopped while it was sent): passed over", flush=True)
            return
        partial = folder / "fetched" / name
        shutil.rmtree(partial, ignore_errors=True)
        for file in [*sizes, SEAL]:
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            self._system.get_file(f"{self._root}/{name}/{file}", str(partial / file))
        if is_whole(partial):
            partial.rename(folder / name)
        else:
            print(f"{self.uri}/{name} is torn (a file has another size): passed over", flush=True)
            shutil.rmtree(partial)
