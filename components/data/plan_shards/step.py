"""Deals the files of a source out to shards."""

from collections.abc import Mapping
from typing import Any

from llm_finetune.components.data.load_dataset.locations import files as files_of
from llm_finetune.components.shared.errors import UserError


def plan_shards(files: str, shards: int, split_settings: Mapping[str, Any] | None = None) -> list[str]:
    """Returns the files of each shard, one below the other.

    Five files for two shards: the first three, then the other two. The order is kept, so that of rows which are the
    same the first one is the first one of the whole source.

    Args:
        files: Paths, URLs and patterns, as Load Dataset takes them.
        shards: Shards at most.
        split_settings: Settings of Train/Val Split.

    Returns:
        As many texts as there are shards.

    Raises:
        UserError: If a pattern matches nothing, there would be no shard, or a group of rows is to stay together.
    """
    group_key = (split_settings or {}).get("group_key", "")
    if group_key:
        raise UserError(
            f"group_key = {group_key!r}: rows are dealt out by their text, so that a group would lie in several "
            "partitions and on both sides of the split. Use the single path, or leave group_key empty"
        )
    if shards < 1:
        raise UserError(f"shards = {shards}: at least one is needed")
    found = [source.location for source in files_of(files)]
    count = min(shards, len(found))
    edges = [-(-i * len(found) // count) for i in range(count + 1)]
    planned = ["\n".join(found[edges[i] : edges[i + 1]]) for i in range(count)]
    print(f"{len(found):,} files in {count:,} shards")
    return planned
