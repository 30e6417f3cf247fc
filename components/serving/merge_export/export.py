"""Copies the exported folder to object storage; the manifest, written last, marks a complete copy."""

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from llm_finetune.components.serving.merge_export import ownership
from llm_finetune.components.serving.merge_export.ownership import MANIFEST, Files, is_export_file_name
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.object_stores import (
    PROBE,
    check_writable,
    explain_store_errors,
    open_store,
    upload_file,
)
from llm_finetune.components.shared.progress import Progress

UNFINISHED_MANIFEST = "manifest.unfinished.json"
FILES_AT_ONCE = 4
SETTING, RESUME_HINT = "export_uri", "run again to resume the copy"


@dataclass(frozen=True)
class EarlierExport:
    """Files of an earlier export at a location.

    Attributes:
        own: Names of its files; None without a manifest.
        uploaded: Files that an interrupted export has uploaded.
    """

    own: set[str] | None
    uploaded: Files


def check_export(uri: str, overwrite: bool = False) -> None:
    """Validates a location before the merge.

    Args:
        uri: The location.
        overwrite: Whether the location may have other files.

    Raises:
        UserError: If the location is invalid, a root folder, not writable, or has other files.
    """
    system, root = open_store(uri, SETTING)
    if isinstance(system, LocalFileSystem) and Path(root or "/").resolve() in (Path("/"), Path.home().resolve()):
        raise UserError(f"{SETTING} = {uri!r} is a root or home folder: use a subfolder for the model")
    with explain_store_errors(uri, SETTING, RESUME_HINT):
        _earlier_export(system, root, uri, overwrite)
        check_writable(system, root)


def export(folder: Path, uri: str, overwrite: bool = False) -> str:
    """Copies a folder to a storage URI, several files in parallel, and verifies the sizes.

    The manifest with sizes and SHA-256 checksums is deleted first and written last, so a location with a manifest is
    complete. Files of an earlier export which the new one lacks are deleted; other files are kept. An interrupted copy
    is resumed: uploaded files are not uploaded again.

    Args:
        folder: The folder.
        uri: Such as `s3://bucket/models/address`.
        overwrite: Whether the location may have other files.

    Returns:
        URI of the manifest.

    Raises:
        UserError: If the storage rejects a request, the location has other files, or an uploaded file is incomplete.
    """
    system, root = open_store(uri, SETTING)
    files = file_checksums(folder)
    with explain_store_errors(uri, SETTING, RESUME_HINT):
        found = _earlier_export(system, root, uri, overwrite)
        own = found.own or set()
        uploaded = _already_uploaded(system, root, files, found.uploaded)
        system.makedirs(root, exist_ok=True)
        _write_progress(system, root, uploaded, own | set(files))
        if system.exists(f"{root}/{MANIFEST}"):
            system.rm_file(f"{root}/{MANIFEST}")
        _upload(system, root, folder, files, uploaded, own | set(files))
        wrong = [
            f"{name} ({size} of {files[name]['size']} bytes)"
            for name, size in _sizes(system, root, files).items()
            if size != files[name]["size"]
        ]
        if wrong:
            raise UserError(f"the export to {uri} is incomplete: {', '.join(wrong)}. Run again")
        for name in sorted(own - set(files)):
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(f"{root}/{name}")
        ownership.warn_of_foreign_weights(_list_files(system, root), files, own)
        system.pipe_file(f"{root}/{MANIFEST}", ownership.manifest(files))
        system.rm_file(f"{root}/{UNFINISHED_MANIFEST}")
    return f"{uri.rstrip('/')}/{MANIFEST}"


def _earlier_export(system: AbstractFileSystem, root: str, uri: str, overwrite: bool) -> EarlierExport:
    """Returns the files of an earlier export, and refuses a location with other files."""
    system.invalidate_cache()
    complete, unfinished = (
        ownership.files_in_manifest(_read(system, root, MANIFEST)),
        _read(system, root, UNFINISHED_MANIFEST),
    )
    uploaded = ownership.files_in_manifest(unfinished)
    noted = json.loads(unfinished or b"{}") if uploaded is not None else {}
    planned = noted.get("own")
    if not (isinstance(planned, list) and all(isinstance(name, str) and is_export_file_name(name) for name in planned)):
        noted, planned = {}, None
    known = [set(names) for names in (complete, planned) if names is not None]
    own = set().union(*known) if known else None
    present = _sample_files(system, root) if own is None else _list_files(system, root)
    ownership.refuse_foreign_files(f"{SETTING} = {uri!r}", present, own, overwrite)
    return EarlierExport(own, noted.get("files", {}))


def _read(system: AbstractFileSystem, root: str, name: str) -> bytes | None:
    try:
        content: bytes = system.cat_file(f"{root}/{name}")
    except FileNotFoundError:
        return None
    return content


def _sample_files(system: AbstractFileSystem, root: str) -> list[str]:
    """Returns the names of some files at a location and its subfolders: the manifest if present, and a few more."""
    names = []
    with contextlib.suppress(FileNotFoundError):
        for folder, _, files in system.walk(root, on_error="raise"):
            inner = folder.strip("/").removeprefix(root.strip("/")).strip("/")
            names += ["/".join(filter(None, [inner, name])) for name in files if name not in ("", PROBE)]
            if len(names) > ownership.MAX_SHOWN:
                break
    return names


def _write_progress(system: AbstractFileSystem, root: str, uploaded: Files, own: set[str]) -> None:
    """Writes the unfinished manifest: the uploaded files, and all names that this export may have written."""
    progress = {"files": uploaded, "own": sorted(own)}
    system.pipe_file(f"{root}/{UNFINISHED_MANIFEST}", json.dumps(progress).encode())


def _upload(system: AbstractFileSystem, root: str, folder: Path, files: Files, uploaded: Files, own: set[str]) -> None:
    """Uploads the missing files, and updates the unfinished manifest after each."""
    megabytes = round(sum(file["size"] for file in files.values()) / 1e6)
    progress = Progress("export", megabytes, "MB")
    if uploaded:
        print(f"export: {len(uploaded)} of {len(files)} files were uploaded before", flush=True)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        pending = {
            pool.submit(upload_file, system, folder / name, f"{root}/{name}"): name
            for name in files
            if name not in uploaded
        }
        try:
            for future in as_completed(pending):
                future.result()
                uploaded[pending[future]] = files[pending[future]]
                _write_progress(system, root, uploaded, own)
                progress.update(min(round(sum(file["size"] for file in uploaded.values()) / 1e6), megabytes))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _already_uploaded(system: AbstractFileSystem, root: str, files: Files, recorded: Files) -> Files:
    """Returns the uploaded files of an earlier attempt that are unchanged and complete."""
    same = {name: file for name, file in recorded.items() if files.get(name) == file}
    sizes = _sizes(system, root, same)
    return {name: file for name, file in same.items() if sizes[name] == file["size"]}


def _sizes(system: AbstractFileSystem, root: str, files: Files) -> dict[str, int]:
    """Returns the bytes that lie there; -1 for a file that is missing."""
    system.invalidate_cache()
    sizes = dict.fromkeys(files, -1)
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            sizes[name] = system.info(f"{root}/{name}")["size"]
    return sizes


def _list_files(system: AbstractFileSystem, root: str) -> list[str]:
    """Returns the names of the files in the folder and in its subfolder `adapter/`."""
    system.invalidate_cache()
    found: list[str] = []
    for folder in ("", "adapter/"):
        with contextlib.suppress(FileNotFoundError):
            listed = system.ls(f"{root}/{folder}".rstrip("/"), detail=True)
            found += [folder + entry["name"].rpartition("/")[2] for entry in listed if entry["type"] == "file"]
    return found


def file_checksums(folder: Path) -> Files:
    """Returns size and SHA-256 checksum of the files of a folder by name."""
    files: Files = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": digest}
    return files
