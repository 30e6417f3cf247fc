"""Deals the files of a source out to shards."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from llm_finetune.components.data.sources.locations import etag
from llm_finetune.components.data.sources.locations import files as files_of
from llm_finetune.components.data.sources.locations import name as name_of
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.partitions import MOST_SHARDS


def plan_shards(
    files: str, shards: int, split_settings: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, str]], list[str]]:
    """Returns what Load Dataset shall read for each shard.

    Five files for two shards: the first three, then the other two. The order is kept, so that of rows which are the
    same the first one is the first one of the whole source.

    Args:
        files: Paths, URLs and patterns, as Load Dataset takes them.
        shards: Shards at most.
        split_settings: Settings of Train/Val Split.

    Returns:
        Per shard settings of Load Dataset (`jsonl_path`, its files, one below the other, and `etag`, which tells them
        from what they were before), and the `source` that Load Dataset will record of it.

    Raises:
        UserError: If a pattern matches nothing, the number of shards is impossible, or a group of rows is to stay
            together.
    """
    group_key = (split_settings or {}).get("group_key", "")
    if group_key:
        raise UserError(
            f"group_key = {group_key!r}: rows are dealt out by their text, so that a group would lie in several "
            "partitions and on both sides of the split. Use the single path, or leave group_key empty"
        )
    if not 1 <= shards <= MOST_SHARDS:
        raise UserError(f"shards = {shards}: 1 to {MOST_SHARDS} are possible")
    found = files_of(files)
    count = min(shards, len(found))
    edges = [-(-i * len(found) // count) for i in range(count + 1)]
    print(f"{len(found):,} files in {count:,} shards")
    parts = [found[begin:end] for begin, end in pairwise(edges)]
    settings = [{"jsonl_path": "\n".join(file.location for file in part), "etag": etag(part)} for part in parts]
    return settings, [name_of(part) for part in parts]
