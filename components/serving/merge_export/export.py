"""Copies the exported folder to object storage, so that no reader ever sees half a model."""

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from llm_finetune.components.serving.merge_export import ownership
from llm_finetune.components.serving.merge_export.ownership import MANIFEST, Files, may_be_ours
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.object_stores import (
    PROBE,
    check_writable,
    explain_store_errors,
    open_store,
    upload_file,
)
from llm_finetune.components.shared.progress import Progress

UNFINISHED = "manifest.unfinished.json"
FILES_AT_ONCE = 4
SETTING, AGAIN = "export_uri", "run again to continue where it broke off"


@dataclass(frozen=True)
class Found:
    """What an earlier export left at a place.

    Attributes:
        ours: Names of its files; None if nothing says that one was there.
        arrived: Of an export that broke off, the files that had arrived.
    """

    ours: set[str] | None
    arrived: Files


def check_export(uri: str, overwrite: bool = False) -> None:
    """Refuses a place that can't be written to, or where others have their files, before the work begins.

    Args:
        uri: The place.
        overwrite: Whether files of others are no reason to refuse.

    Raises:
        UserError: If it is unknown, a root, not ours, or refuses.
    """
    system, root = open_store(uri, SETTING)
    if isinstance(system, LocalFileSystem) and Path(root or "/").resolve() in (Path("/"), Path.home().resolve()):
        raise UserError(f"{SETTING} = {uri!r} is a root or home folder: give a folder of the model's own in it")
    with explain_store_errors(uri, SETTING, AGAIN):
        _found(system, root, uri, overwrite)
        check_writable(system, root)


def export(folder: Path, uri: str, overwrite: bool = False) -> str:
    """Copies a folder to a storage URI, several files at a time, and checks what has arrived.

    The manifest of sizes and SHA-256 sums is written last, and an older one is taken away first: where there is one,
    everything it names is there. Of an earlier export, what the new one does not replace is removed before; nothing
    else is. A copy that broke off is continued: files that had arrived are not sent again.

    Args:
        folder: The folder.
        uri: Such as `s3://bucket/models/address`.
        overwrite: Whether files of others are no reason to refuse.

    Returns:
        URI of the manifest.

    Raises:
        UserError: If the storage refuses, the place isn't ours, or a file has another size there.
    """
    system, root = open_store(uri, SETTING)
    files = described(folder)
    with explain_store_errors(uri, SETTING, AGAIN):
        found = _found(system, root, uri, overwrite)
        ours = found.ours or set()
        arrived = _still_there(system, root, files, found.arrived)
        system.makedirs(root, exist_ok=True)
        _note(system, root, arrived, ours | set(files))
        if system.exists(f"{root}/{MANIFEST}"):
            system.rm_file(f"{root}/{MANIFEST}")
        _send(system, root, folder, files, arrived, ours | set(files))
        wrong = [
            f"{name} ({size} of {files[name]['size']} bytes)"
            for name, size in _sizes(system, root, files).items()
            if size != files[name]["size"]
        ]
        if wrong:
            raise UserError(f"the export to {uri} is not whole: {', '.join(wrong)}. Run again")
        for name in sorted(ours - set(files)):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(f"{root}/{name}")
        ownership.beside(_present(system, root), files, ours)
        system.pipe_file(f"{root}/{MANIFEST}", ownership.manifest(files))
        system.rm_file(f"{root}/{UNFINISHED}")
    return f"{uri.rstrip('/')}/{MANIFEST}"


def _found(system: Any, root: str, uri: str, overwrite: bool) -> Found:
    """Returns what an earlier export left, and refuses a place of others."""
    system.invalidate_cache()
    done, broken = ownership.named(_read(system, root, MANIFEST)), _read(system, root, UNFINISHED)
    arrived = ownership.named(broken)
    noted = json.loads(broken or b"{}") if arrived is not None else {}
    planned = noted.get("own")
    if not (isinstance(planned, list) and all(isinstance(name, str) and may_be_ours(name) for name in planned)):
        noted, planned = {}, None
    marks = [set(names) for names in (done, planned) if names is not None]
    ours = set().union(*marks) if marks else None
    present = _some_files(system, root) if ours is None else _present(system, root)
    ownership.refuse_others(f"{SETTING} = {uri!r}", present, ours, overwrite)
    return Found(ours, noted.get("files", {}))


def _read(system: Any, root: str, name: str) -> bytes | None:
    try:
        content: bytes = system.cat_file(f"{root}/{name}")
    except FileNotFoundError:
        return None
    return content


def _some_files(system: Any, root: str) -> list[str]:
    """Returns names of files at a place, in folders too: the manifest if there is one, and a few others."""
    names = []
    with contextlib.suppress(FileNotFoundError):
        for folder, _, files in system.walk(root, on_error="raise"):
            inner = folder.strip("/").removeprefix(root.strip("/")).strip("/")
            names += ["/".join(filter(None, [inner, name])) for name in files if name not in ("", PROBE)]
            if len(names) > ownership.SHOWN:
                break
    return names


def _note(system: Any, root: str, arrived: Files, own: set[str]) -> None:
    """Notes what has arrived, and what of ours may lie there."""
    noted = {"files": arrived, "own": sorted(own)}
    system.pipe_file(f"{root}/{UNFINISHED}", json.dumps(noted).encode())


def _send(system: Any, root: str, folder: Path, files: Files, arrived: Files, own: set[str]) -> None:
    """Sends what has not arrived, and notes after each file what has."""
    megabytes = round(sum(file["size"] for file in files.values()) / 1e6)
    progress = Progress("export", megabytes, "MB")
    if arrived:
        print(f"export: {len(arrived)} of {len(files)} files had arrived before", flush=True)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        waiting = {
            pool.submit(upload_file, system, folder / name, f"{root}/{name}"): name
            for name in files
            if name not in arrived
        }
        try:
            for done in as_completed(waiting):
                done.result()
                arrived[waiting[done]] = files[waiting[done]]
                _note(system, root, arrived, own)
                progress.update(min(round(sum(file["size"] for file in arrived.values()) / 1e6), megabytes))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _still_there(system: Any, root: str, files: Files, noted: Files) -> Files:
    """Returns the files of an earlier attempt that are the same here and whole there."""
    same = {name: file for name, file in noted.items() if files.get(name) == file}
    sizes = _sizes(system, root, same)
    return {name: file for name, file in same.items() if sizes[name] == file["size"]}


def _sizes(system: Any, root: str, files: Files) -> dict[str, int]:
    """Returns the bytes that lie there; -1 for a file that is missing."""
    system.invalidate_cache()
    sizes = dict.fromkeys(files, -1)
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            sizes[name] = system.info(f"{root}/{name}")["size"]
    return sizes


def _present(system: Any, root: str) -> list[str]:
    """Returns the names of the files in the folder and in its `adapter/`."""
    system.invalidate_cache()
    found: list[str] = []
    for folder in ("", "adapter/"):
        with contextlib.suppress(FileNotFoundError):
            listed = system.ls(f"{root}/{folder}".rstrip("/"), detail=True)
            found += [folder + entry["name"].rpartition("/")[2] for entry in listed if entry["type"] == "file"]
    return found


def described(folder: Path) -> Files:
    """Returns size and SHA-256 sum of a folder's files by name."""
    files: Files = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": digest}
    return files
