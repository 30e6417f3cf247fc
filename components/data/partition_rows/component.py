"""Partition Rows: distributes the rows of all shards so that all copies of a row are in one partition."""

from typing import List

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def partition_rows(
    shards: dsl.Input[List[dsl.Dataset]],
    planned: List[str],
    partitions: dsl.Output[dsl.Dataset],
    parts: int = 8,
    settings: dict = {},
    package_version: str = "",
) -> List[dict]:
    """Distributes the rows of all shards to partitions by a hash of the text that Filter & Clean deduplicates by.

    Rows with the same text are in the same partition, so each partition can be cleaned separately with the same result
    as cleaning all rows at once. All partitions are in one artifact, because KFP's backend passes only one element of a
    list of artifacts into a loop.

    Args:
        shards: The rows of each shard.
        planned: Names of all shards, as returned by Plan Shards; exactly these must be present.
        partitions: One dataset per partition, in numbered folders; rows keep their order.
        parts: Number of partitions.
        settings: Settings of Filter & Clean.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        Number and rows of each partition (`part` and `rows`), for the parameter `partition` of Filter & Clean.
    """
    from llm_finetune.components.data.filter_clean.settings import Settings
    from llm_finetune.components.data.partition_rows import step
    from llm_finetune.components.shared import row_counts
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import read_metadata

    with card(package_version):
        order = row_counts.planned_order("shard", planned, [read_metadata(shard).get("source", "") for shard in shards])
        inputs = {f"shard_{number}": shards[place] for number, place in enumerate(order)}
        row_counts.check_whole(inputs)
        paths = [shard.path for shard in inputs.values()]
        written = step.partition_rows(paths, partitions.path, int(parts), Settings.of({"settings": settings}))
        facts = step.facts(partitions.path, [read_metadata(shard) for shard in inputs.values()], written)
        partitions.metadata.update(facts.metadata() | lineage(inputs) | {"origin": facts.origin()})
    return written
