"""Plan Shards: which files of a source are read together."""

from typing import List, NamedTuple

from llm_finetune.components.shared.images import data_component


@data_component()
def plan_shards(files: str, shards: int, split_settings: dict = {}, package_version: str = "") -> NamedTuple(
    "Plan", [("settings", List[dict]), ("names", List[str])]
):
    """Deals the files of a source out to shards, in order and as evenly as whole files allow.

    Args:
        files: Files as Load Dataset's jsonl_path takes them: paths, URLs and patterns, with commas between them.
        shards: Shards at most; there are never more than files.
        split_settings: Settings of Train/Val Split, refused here if no partition can keep them by itself.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        For each shard its files and what they hold now, as settings of Load Dataset, and the name of those files, by
        which Partition Rows knows whether all have arrived.
    """
    from llm_finetune.components.data.plan_shards import step
    from llm_finetune.components.shared.card import card

    with card(package_version):
        planned = step.plan_shards(files, int(shards), split_settings)
    return planned
