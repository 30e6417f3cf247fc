"""Whose files lie where a model is exported to: ours are those that a manifest of an earlier export names."""

import json
from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any

from llm_finetune.components.serving.merge_export.layout import ADAPTER, WEIGHTS, leftovers
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.base_model import NON_WEIGHT_FILES

MANIFEST = "manifest.json"
OVERWRITE = "merge_export: {export_overwrite: true}"
SHOWN = 5

Files = dict[str, dict[str, Any]]


def manifest(files: Files) -> bytes:
    """Returns the manifest of an export.

    Args:
        files: Size and SHA-256 sum by name.
    """
    whole = {"files": files, "size": sum(file["size"] for file in files.values())}
    return json.dumps(whole, indent=2).encode()


def named(content: bytes | None) -> set[str] | None:
    """Returns the names in a manifest; None if there is none, or it can't be one that this card wrote.

    It decides what is removed, so a single name that this card does not write makes all of it worthless.

    Args:
        content: The manifest's bytes.
    """
    try:
        files = json.loads(content or b"")["files"]
        whole = all(type(file["size"]) is int and len(file["sha256"]) == 64 for file in files.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return set(files) if whole and all(map(may_be_ours, files)) else None


def may_be_ours(name: str) -> bool:
    """Tells whether a name is one that an export can have: a model's files, in the folder itself or in `adapter/`."""
    file = name.removeprefix("adapter/")
    return "/" not in file and any(fnmatch(file, of) for of in (*WEIGHTS, *ADAPTER, *NON_WEIGHT_FILES))


def refuse_others(place: str, present: Collection[str], ours: set[str] | None, overwrite: bool) -> None:
    """Refuses a place that isn't empty and not ours, and one where a server would load files of others.

    Args:
        place: The setting and its value, for the message.
        present: Names of files there; without a manifest, some of them are enough.
        ours: Names of our own; None if nothing says that an export of ours lies there.
        overwrite: Whether files of others are no reason to refuse.

    Raises:
        UserError: Naming some of the files, and the ways on.
    """
    others = sorted(present) if ours is None else leftovers(present, ours)
    if overwrite or not others:
        return
    shown = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
    if ours is None:
        damaged = f" (its {MANIFEST} is damaged, or not of this card)" if MANIFEST in present else ""
        what = f"holds files that are not of an earlier export{damaged}: {shown}"
    else:
        what = f"holds, beside an earlier export, files that are not of it and that a server would load: {shown}"
    raise UserError(
        f"{place} {what}. Give an empty place, or move them away; to write there all the same, set `{OVERWRITE}` in "
        "the recipe: files of the same names are replaced, all others stay. (An older version of this suite wrote no "
        "manifest to the Hub, and none where an export broke off: its files count as those of others)"
    )


def beside(present: Collection[str], files: Collection[str], ours: Collection[str]) -> None:
    """Warns of files of others that a server would load beside or instead of the new model's.

    Args:
        present: Names of files there.
        files: Names of the new model's.
        ours: Names of an earlier export's.
    """
    others = leftovers(present, {*files, *ours})
    if others:
        print(f"warning: beside the exported model lie weights that are not its own: {', '.join(others)}", flush=True)
