"""Distinguishes files of an earlier export, which its manifest lists, from other files at a location."""

import json
from collections.abc import Collection
from fnmatch import fnmatch
from typing import TypedDict

from llm_finetune.components.serving.merge_export.layout import ADAPTER_FILES, WEIGHT_PATTERNS, stale_weights
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import NON_WEIGHT_FILES

MANIFEST = "manifest.json"
OVERWRITE = "merge_export: {export_overwrite: true}"
MAX_SHOWN = 5


class FileInfo(TypedDict):
    """A file in a manifest."""

    size: int
    sha256: str


Files = dict[str, FileInfo]


def manifest(files: Files) -> bytes:
    """Returns the manifest of an export.

    Args:
        files: Size and SHA-256 checksum by name.
    """
    content = {"files": files, "size": sum(file["size"] for file in files.values())}
    return json.dumps(content, indent=2).encode()


def files_in_manifest(content: bytes | None) -> set[str] | None:
    """Returns the names in a manifest; None if there is no manifest or it is not one of this card.

    The names may be deleted, so a manifest with a name that this card never writes is rejected as a whole.

    Args:
        content: The bytes of the manifest; None if there is none.
    """
    try:
        files = json.loads(content or b"")["files"]
        valid = all(type(file["size"]) is int and len(file["sha256"]) == 64 for file in files.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return set(files) if valid and all(map(is_export_file_name, files)) else None


def is_export_file_name(name: str) -> bool:
    """Returns whether an export may write a file of this name: model files, in the folder or in `adapter/`."""
    file = name.removeprefix("adapter/")
    return "/" not in file and any(fnmatch(file, of) for of in (*WEIGHT_PATTERNS, *ADAPTER_FILES, *NON_WEIGHT_FILES))


def refuse_foreign_files(place: str, present: Collection[str], own: set[str] | None, overwrite: bool) -> None:
    """Refuses a location with files of unknown origin, or with other files that a server would load.

    Args:
        place: The setting and its value, for the message.
        present: Names of files at the location; without a manifest, some of them.
        own: Names of files of an earlier export; None without a manifest.
        overwrite: Whether other files are allowed.

    Raises:
        UserError: With some of the names, and the possible fixes.
    """
    others = sorted(present) if own is None else stale_weights(present, own)
    if overwrite or not others:
        return
    shown = ", ".join(others[:MAX_SHOWN]) + (", …" if len(others) > MAX_SHOWN else "")
    if own is None:
        damaged = f" (its {MANIFEST} is invalid or not of this card)" if MANIFEST in present else ""
        what = f"has files that are not of an earlier export{damaged}: {shown}"
    else:
        what = f"has an earlier export and other files, which a server would load: {shown}"
    raise UserError(
        f"{place} {what}. Use an empty location, or move these files; to write there anyway, set `{OVERWRITE}` in "
        "the recipe: files of the same names are replaced, all others are kept. (Version 0.1 wrote no manifest to the "
        "Hub, and none for an interrupted export: its files count as other files)"
    )


def warn_of_foreign_weights(present: Collection[str], files: Collection[str], own: Collection[str]) -> None:
    """Prints a warning about other weights that a server would load together with the new model.

    Args:
        present: Names of files at the location.
        files: Names of files of the new model.
        own: Names of files of an earlier export.
    """
    others = stale_weights(present, {*files, *own})
    if others:
        print(
            f"warning: the location also has weights that are not of the exported model: {', '.join(others)}",
            flush=True,
        )
