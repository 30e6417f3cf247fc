"""Partition Rows: deals the rows of all shards out so that all copies of a row meet in one place."""

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
    """Deals the rows of all shards out to partitions by a hash of what Filter & Clean compares to find duplicates.

    Rows with the same text get the same partition whatever shard they come from, so that each partition can be cleaned
    by itself and the result is that of cleaning all rows at once. All partitions lie in one artifact, because KFP's
    backend hands only one element of a list of artifacts to the inside of a loop.

    Args:
        shards: The rows of each shard.
        planned: Name of each shard, as Plan Shards returns them: exactly these must be there.
        partitions: One dataset per partition, in folders by their numbers; rows keep their order.
        parts: Number of partitions.
        settings: The settings that Filter & Clean will be given.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        Number and rows of each partition (`part` and `rows`): what Filter & Clean takes one of as `partition`.
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
        dealt = step.partition_rows(paths, partitions.path, int(parts), Settings.of({"settings": settings}))
        facts = step.whole(partitions.path, [read_metadata(shard) for shard in inputs.values()], dealt)
        partitions.metadata.update(facts.metadata() | lineage(inputs) | {"origin": facts.origin()})
    return dealt
