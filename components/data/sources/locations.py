"""Resolves paths, URLs and patterns to files."""

import glob
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_finetune.components.data.sources.source import Source, etag_from, file_system
from llm_finetune.components.shared.errors import UserError, nearest

MAX_REQUESTS = 16  # concurrent requests for ETags


def find_files(text: str) -> list[Source]:
    """Returns the files that a setting names, such as `data/*.jsonl.gz` or `a.jsonl, s3://bucket/b.jsonl`.

    Args:
        text: Paths and URLs, separated by commas or line breaks. `*`, `?`, `[...]` and `**` are patterns, except in
        https:// URLs. Matches are sorted by name; files that start with `.` or `_` are ignored. The name of an
        existing local file is never interpreted as a pattern.

    Returns:
        The files in order, without duplicates.

    Raises:
        UserError: If a pattern matches no file, or a file is named twice.
    """
    if _is_file(text):
        return [Source(text)]
    named = [source for part in re.split(r"[,\n]", text) if part.strip() for source in _expand(part.strip())]
    locations = [source.location for source in named]
    twice = next((source for source in named if locations.count(source.location) > 1), None) if len(named) > 1 else None
    if twice:
        raise UserError(f"{twice.name} is named twice")
    return named


def joint_name(found: list[Source]) -> str:
    """Returns a name for several files, for messages and lineage: the first name, and the number of others."""
    return found[0].name if len(found) == 1 else f"{found[0].name} and {len(found) - 1:,} more"


def joint_etag(found: list[Source]) -> str:
    """Returns the ETag of one file, or a hash over the ETags of several.

    Args:
        found: The files.

    Returns:
        The ETag; empty, with a line in the log, if a file has no ETag.

    Raises:
        UserError: If a file does not exist or is unreachable.
    """
    with ThreadPoolExecutor(MAX_REQUESTS) as threads:
        etags = list(threads.map(Source.etag, found))
    unpinned = [file.name for file, own in zip(found, etags, strict=True) if not own]
    if unpinned:
        print(
            f"not pinned: {unpinned[0]} has no ETag, so cached results are reused even if the file changes. Set "
            "sha256, or run without the cache",
            flush=True,
        )
        return ""
    return etags[0] if len(etags) == 1 else hashlib.sha256("\n".join(etags).encode()).hexdigest()


def _expand(pattern: str) -> list[Source]:
    source = Source(pattern)
    if source.is_web or not glob.has_magic(pattern) or _is_file(pattern):
        return [source]
    with source.translate_errors():
        if source.is_local:
            paths = sorted(path for path in glob.glob(source.location, recursive=True) if Path(path).is_file())
            found = [Source(path) for path in paths]
        else:
            system, path = file_system(pattern)
            system.invalidate_cache()
            entries = system.glob(path, detail=True)
            found = [
                Source(system.unstrip_protocol(name), etag_from(entries[name]))
                for name in sorted(entries)
                if entries[name]["type"] == "file"
            ]
    data = [file for file in found if not Path(file.location).name.startswith((".", "_"))]
    if not data:
        raise UserError(f"{source.name} matches no file{_missing_file_hint(source)}")
    return data


def _missing_file_hint(source: Source) -> str:
    if not source.is_local:
        return ": check the address, and the storage credentials if it is not public"
    folder = Path(source.location).parent
    if glob.has_magic(str(folder)):
        return ""
    if not folder.is_dir():
        return f": folder {folder} does not exist"
    names = sorted(file.name for file in folder.iterdir())
    return nearest(Path(source.location).name, names) or f" (in {folder}: {', '.join(names[:5]) or 'nothing'})"


def _is_file(text: str) -> bool:
    source = Source(text)
    return source.is_local and "\0" not in text and len(text) < 4096 and Path(source.location).is_file()
