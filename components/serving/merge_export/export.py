"""Copies the exported folder to object storage, so that no reader ever sees half a model."""

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from llm_finetune.components.serving.merge_export.layout import leftovers
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.object_stores import check_writable, open_store, refusals, send
from llm_finetune.components.shared.progress import Progress

MANIFEST, UNFINISHED = "manifest.json", "manifest.unfinished.json"
FILES_AT_ONCE = 4
SETTING, AGAIN = "export_uri", "run again to continue where it broke off"

Files = dict[str, dict[str, Any]]


def check_export(uri: str) -> None:
    """Refuses a place that can't be written to before the work begins.

    Args:
        uri: The place.

    Raises:
        UserError: If it is unknown or refuses.
    """
    system, root = open_store(uri, SETTING)
    with refusals(uri, SETTING, AGAIN):
        check_writable(system, root)


def export(folder: Path, uri: str) -> str:
    """Copies a folder to a storage URI, several files at a time, and checks what has arrived.

    The manifest of sizes and SHA-256 sums is written last, and an older one is taken away first: where there is one,
    everything it names is there, and no weights of an earlier model are. A copy that broke off is continued: files that
    had arrived are not sent again.

    Args:
        folder: The folder.
        uri: Such as `s3://bucket/models/address`.

    Returns:
        URI of the manifest.

    Raises:
        UserError: If the storage refuses, or a file has another size there.
    """
    system, root = open_store(uri, SETTING)
    files = _described(folder)
    with refusals(uri, SETTING, AGAIN):
        arrived = _arrived_before(system, root, files)
        if system.exists(f"{root}/{MANIFEST}"):
            system.rm_file(f"{root}/{MANIFEST}")
        _send(system, root, folder, files, arrived)
        wrong = [
            f"{name} ({size} of {files[name]['size']} bytes)"
            for name, size in _sizes(system, root, files).items()
            if size != files[name]["size"]
        ]
        if wrong:
            raise UserError(f"the export to {uri} is not whole: {', '.join(wrong)}. Run again")
        for name in leftovers(_present(system, root), files):
            system.rm_file(f"{root}/{name}")
        manifest = {"files": files, "size": sum(file["size"] for file in files.values())}
        system.pipe_file(f"{root}/{MANIFEST}", json.dumps(manifest, indent=2).encode())
        system.rm_file(f"{root}/{UNFINISHED}")
    return f"{uri.rstrip('/')}/{MANIFEST}"


def _send(system: Any, root: str, folder: Path, files: Files, arrived: Files) -> None:
    """Sends what has not arrived, and notes after each file what has."""
    megabytes = round(sum(file["size"] for file in files.values()) / 1e6)
    progress = Progress("export", megabytes, "MB")
    if arrived:
        print(f"export: {len(arrived)} of {len(files)} files had arrived before", flush=True)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        waiting = {
            pool.submit(send, system, folder / name, f"{root}/{name}"): name for name in files if name not in arrived
        }
        try:
            for done in as_completed(waiting):
                done.result()
                arrived[waiting[done]] = files[waiting[done]]
                system.pipe_file(f"{root}/{UNFINISHED}", json.dumps(arrived).encode())
                progress.update(min(round(sum(file["size"] for file in arrived.values()) / 1e6), megabytes))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if not waiting:
        system.pipe_file(f"{root}/{UNFINISHED}", json.dumps(arrived).encode())


def _arrived_before(system: Any, root: str, files: Files) -> Files:
    """Returns the files of an earlier attempt that are the same here and whole there."""
    system.invalidate_cache()
    try:
        noted: Files = json.loads(system.cat_file(f"{root}/{UNFINISHED}"))
    except FileNotFoundError:
        return {}
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


def _described(folder: Path) -> Files:
    files: Files = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": digest}
    return files
