"""Which files a setting means: one or several, written out or as patterns, here or in an object store."""

import glob
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_finetune.components.data.sources.sources import Source, etag_of, file_system
from llm_finetune.components.shared.errors import UserError, nearest

AT_ONCE = 16  # servers asked for an ETag side by side


def files(text: str) -> list[Source]:
    """Returns the files of a setting such as `data/*.jsonl.gz` or `a.jsonl, s3://bucket/b.jsonl`.

    Args:
        text: Paths and URLs, with commas or line ends between them. `*`, `?`, `[...]` and `**` are patterns, but
            not in https:// URLs; what they match comes in the order of names, without files that begin with `.` or `_`.
            The name of a file that is here is taken as it is.

    Returns:
        The files, each once, in order.

    Raises:
        UserError: If a pattern matches nothing or a file is named twice.
    """
    if _is_file(text):
        return [Source(text)]
    named = [source for part in re.split(r"[,\n]", text) if part.strip() for source in _matches(part.strip())]
    locations = [source.location for source in named]
    twice = next((source for source in named if locations.count(source.location) > 1), None) if len(named) > 1 else None
    if twice:
        raise UserError(f"{twice.name} is named twice")
    return named


def name(found: list[Source]) -> str:
    """Returns what files read together are called in messages and lineage: the first one, and how many more."""
    return found[0].name if len(found) == 1 else f"{found[0].name} and {len(found) - 1:,} more"


def etag(found: list[Source]) -> str:
    """Returns what tells files from what they were before: the ETag of one, a hash over those of several.

    Args:
        found: The files.

    Returns:
        The ETag; empty, with a line in the log, if a file has none.

    Raises:
        UserError: If a file is not there or not in reach.
    """
    with ThreadPoolExecutor(AT_ONCE) as threads:
        etags = list(threads.map(Source.etag, found))
    lost = [file.name for file, own in zip(found, etags, strict=True) if not own]
    if lost:
        print(
            f"not pinned: {lost[0]} has no ETag, so a change in it goes unseen where earlier results are taken. Set "
            "sha256, or run without the cache",
            flush=True,
        )
        return ""
    return etags[0] if len(etags) == 1 else hashlib.sha256("\n".join(etags).encode()).hexdigest()


def _matches(pattern: str) -> list[Source]:
    source = Source(pattern)
    if source.is_web or not glob.has_magic(pattern) or _is_file(pattern):
        return [source]
    with source.explained():
        if source.is_local:
            paths = sorted(path for path in glob.glob(source.location, recursive=True) if Path(path).is_file())
            found = [Source(path) for path in paths]
        else:
            system, path = file_system(pattern)
            system.invalidate_cache()
            entries = system.glob(path, detail=True)
            found = [
                Source(system.unstrip_protocol(name), etag_of(entries[name]))
                for name in sorted(entries)
                if entries[name]["type"] == "file"
            ]
    data = [file for file in found if not Path(file.location).name.startswith((".", "_"))]
    if not data:
        raise UserError(f"{source.name} matches no file{_beside(source)}")
    return data


def _beside(source: Source) -> str:
    if not source.is_local:
        return ": check the address, and the storage credentials if it is not public"
    folder = Path(source.location).parent
    if glob.has_magic(str(folder)):
        return ""
    if not folder.is_dir():
        return f": there is no folder {folder}"
    names = sorted(file.name for file in folder.iterdir())
    return nearest(Path(source.location).name, names) or f" (in {folder}: {', '.join(names[:5]) or 'nothing'})"


def _is_file(text: str) -> bool:
    source = Source(text)
    return source.is_local and "\0" not in text and len(text) < 4096 and Path(source.location).is_file()
