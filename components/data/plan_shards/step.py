"""Assigns the files of a source to shards."""

from collections.abc import Mapping
from itertools import pairwise

from llm_finetune.components.data.sources import locations
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.partitions import MAX_SHARDS


def plan_shards(
    files: str, shards: int, split_settings: Mapping[str, object] | None = None
) -> tuple[list[dict[str, str]], list[str]]:
    """Returns settings of Load Dataset for each shard.

    Five files in two shards: the first three, then the other two. The order is preserved, so that the first of several
    duplicate rows is the first in the whole source.

    Args:
        files: Paths, URLs and patterns, as in Load Dataset.
        shards: Maximum number of shards.
        split_settings: Settings of Train/Val Split.

    Returns:
        For each shard: settings of Load Dataset (`jsonl_path`, one file per line, and `etag`), and the `source` that
        Load Dataset will record.

    Raises:
        UserError: If a pattern matches no file, the number of shards is out of range, or `group_key` is set.
    """
    group_key = (split_settings or {}).get("group_key", "")
    if group_key:
        raise UserError(
            f"group_key = {group_key!r}: rows are partitioned by their text, so a group would be spread over several "
            "partitions and both sides of the split. Use the unsharded pipeline, or leave group_key empty"
        )
    if not 1 <= shards <= MAX_SHARDS:
        raise UserError(f"shards = {shards}: must be between 1 and {MAX_SHARDS}")
    found = locations.find_files(files)
    count = min(shards, len(found))
    edges = [-(-i * len(found) // count) for i in range(count + 1)]
    print(f"{len(found):,} files in {count:,} shards")
    parts = [found[begin:end] for begin, end in pairwise(edges)]
    settings = [
        {"jsonl_path": "\n".join(file.location for file in part), "etag": locations.joint_etag(part)} for part in parts
    ]
    return settings, [locations.joint_name(part) for part in parts]
