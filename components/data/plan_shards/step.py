"""Deals the files of a source out to shards."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from llm_finetune.components.data.load_dataset.locations import etag
from llm_finetune.components.data.load_dataset.locations import files as files_of
from llm_finetune.components.shared.errors import UserError


def plan_shards(files: str, shards: int, split_settings: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """Returns settings of Load Dataset for each shard: its files, one below the other, and what they hold now.

    Five files for two shards: the first three, then the other two. The order is kept, so that of rows which are the
    same the first one is the first one of the whole source.

    Args:
        files: Paths, URLs and patterns, as Load Dataset takes them.
        shards: Shards at most.
        split_settings: Settings of Train/Val Split.

    Returns:
        Per shard `jsonl_path`, and `etag`, which tells them from what they were before.

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
    found = files_of(files)
    count = min(shards, len(found))
    edges = [-(-i * len(found) // count) for i in range(count + 1)]
    print(f"{len(found):,} files in {count:,} shards")
    return [
        {
            "jsonl_path": "\n".join(file.location for file in found[begin:end]),
            "etag": etag(found[begin:end]),
        }
        for begin, end in pairwise(edges)
    ]
