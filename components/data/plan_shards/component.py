"""Plan Shards: assigns the files of a source to shards."""

from typing import List, NamedTuple

from llm_finetune.components.shared.images import data_component


@data_component()
def plan_shards(files: str, shards: int, split_settings: dict = {}, package_version: str = "") -> NamedTuple(
    "Plan", [("settings", List[dict]), ("names", List[str])]
):
    """Assigns the files of a source to shards, in order and as evenly as whole files allow.

    Args:
        files: Paths, URLs and patterns, separated by commas, as in Load Dataset's jsonl_path.
        shards: Maximum number of shards; limited by the number of files.
        split_settings: Settings of Train/Val Split; refused if a split per partition cannot satisfy them.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        For each shard: settings of Load Dataset with its files and their ETag, and a name by which Partition Rows
        detects missing shards.
    """
    from llm_finetune.components.data.plan_shards import step
    from llm_finetune.components.shared.card import card

    with card(package_version):
        planned = step.plan_shards(files, int(shards), split_settings)
    return planned
