"""Checkpoints in an object store, from which a new pod resumes."""

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
from llm_finetune.components.training.finetune_lora.checkpoints import (
    FINGERPRINT,
    MANIFEST,
    is_complete,
    refuse_foreign_checkpoints,
)

SETTING = "checkpoint_folder"
ALTERNATIVE = "or keep the checkpoints on a volume"


def local_folder(uri: str) -> Path:
    """Returns the local checkpoint folder for a URI while a training runs; the same in every pod."""
    return Path(tempfile.gettempdir()) / "llm-finetune-checkpoints" / sha256(uri.encode()).hexdigest()[:16]


class RemoteCheckpoints(TrainerCallback):
    """A copy of a checkpoint folder in an object store.

    A checkpoint's manifest, which lists its files and their sizes, is uploaded last and removed first: a checkpoint
    without a manifest, or with other sizes, is incomplete.
    """

    def __init__(self, uri: str) -> None:
        """Opens the store.

        Args:
            uri: Such as `s3://bucket/checkpoints/address`.

        Raises:
            UserError: If no installed library supports the URI.
        """
        self.uri = uri
        self._system, self._root = open_store(uri, SETTING)

    def download(self, folder: Path) -> None:
        """Downloads the fingerprint and all complete checkpoints, and checks that the store is writable.

        Args:
            folder: Local folder; checkpoints in it are removed, because those of the store are used.

        Raises:
            UserError: If the store refuses access, or contains checkpoints that this suite did not write.
        """
        for stale in folder.glob("checkpoint-*"):
            shutil.rmtree(stale)
        (folder / FINGERPRINT).unlink(missing_ok=True)
        with explain_store_errors(self.uri, SETTING, ALTERNATIVE):
            names = self._names()
            try:
                (folder / FINGERPRINT).write_bytes(self._system.cat_file(f"{self._root}/{FINGERPRINT}"))
            except FileNotFoundError:
                refuse_foreign_checkpoints(self.uri, names)
            check_writable(self._system, self._root)
            for name in names:
                self._download_one(name, folder)
        shutil.rmtree(folder / "downloaded", ignore_errors=True)

    def upload(self, folder: Path) -> None:
        """Uploads a folder's checkpoints, and removes those from the store that the folder no longer has.

        Args:
            folder: The folder.
        """
        self._upload_file(folder / FINGERPRINT, FINGERPRINT)
        local, remote = {path.name for path in folder.glob("checkpoint-*")}, set(self._names())
        for name in sorted(local - self._complete(remote)):
            files = [path for path in sorted((folder / name).rglob("*")) if path.is_file() and path.name != MANIFEST]
            for path in [*files, folder / name / MANIFEST]:
                self._upload_file(path, path.relative_to(folder).as_posix())
        for name in remote - local:
            with suppress(FileNotFoundError):
                self._system.rm_file(f"{self._root}/{name}/{MANIFEST}")
            self._system.rm(f"{self._root}/{name}", recursive=True)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Uploads a new checkpoint; an unreachable store does not stop the training."""
        if state.is_world_process_zero:
            try:
                self.upload(Path(str(args.output_dir)))
            except Exception as error:  # every storage library has its own exception types
                print(
                    f"checkpoint {state.global_step} was not copied to {self.uri}: {type(error).__name__}: "
                    f"{first_line(error)}. The training continues and uploads the next checkpoint",
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

    def _complete(self, names: set[str]) -> set[str]:
        return {name for name in names if self._system.exists(f"{self._root}/{name}/{MANIFEST}")}

    def _upload_file(self, file: Path, name: str) -> None:
        upload_file(self._system, file, f"{self._root}/{name}")

    def _download_one(self, name: str, folder: Path) -> None:
        try:
            sizes: dict[str, int] = json.loads(self._system.cat_file(f"{self._root}/{name}/{MANIFEST}"))
        except FileNotFoundError:
            print(f"{self.uri}/{name} is incomplete (the process stopped during the upload): skipped", flush=True)
            return
        partial = folder / "downloaded" / name
        shutil.rmtree(partial, ignore_errors=True)
        for file in [*sizes, MANIFEST]:
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            self._system.get_file(f"{self._root}/{name}/{file}", str(partial / file))
        if is_complete(partial):
            partial.rename(folder / name)
        else:
            print(f"{self.uri}/{name} is incomplete (a file has another size): skipped", flush=True)
            shutil.rmtree(partial)
