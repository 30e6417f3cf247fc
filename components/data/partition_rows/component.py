"""Partition Rows: deals rows out so that all copies of a row meet in one place."""

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def partition_rows(
    raw_dataset: dsl.Input[dsl.Dataset],
    partitions: dsl.Output[dsl.Dataset],
    parts: int = 8,
    settings: dict = {},
    package_version: str = "",
):
    """Deals the rows of a shard out to partitions by a hash of what Filter & Clean compares to find duplicates.

    Rows with the same text get the same partition whatever shard they come from, so that each partition can be cleaned
    by itself and the result is that of cleaning all rows at once.

    Args:
        raw_dataset: The rows of one shard.
        partitions: One dataset per partition, in folders by their numbers; rows keep their order.
        parts: Number of partitions.
        settings: The settings that Filter & Clean will be given.
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    from llm_finetune.components.data.filter_clean.settings import Settings
    from llm_finetune.components.data.partition_rows import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import recorded

    with card(package_version):
        rows = step.partition_rows(raw_dataset.path, partitions.path, int(parts), Settings.of({"settings": settings}))
        origin = {name: recorded(raw_dataset).get(name, "") for name in ("source", "revision")}
        partitions.metadata.update({"rows": rows, "parts": int(parts)} | origin | lineage({"raw_dataset": raw_dataset}))
