"""Gather Shards: concatenates the datasets of all partitions."""

from typing import List

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def gather_shards(
    shards: dsl.Input[List[dsl.Dataset]],
    partitions: List[dict],
    dataset: dsl.Output[dsl.Dataset],
    package_version: str = "",
):
    """Concatenates datasets with the same columns.

    The column `row` of token datasets, which numbers the rows of their texts, continues from one dataset to the next.

    Args:
        shards: The dataset of each partition.
        partitions: All partitions, as returned by Partition Rows; exactly these must be present.
        dataset: The rows of all, and the other files of the first dataset (tokenizer, format, chat template).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    from llm_finetune.components.data.gather_shards import step
    from llm_finetune.components.shared import row_counts
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import read_metadata

    with card(package_version):
        planned = step.partition_numbers(partitions)
        arrived = step.partition_numbers([read_metadata(shard) for shard in shards])
        order = row_counts.planned_order("partition", planned, arrived)
        inputs = {f"partition_{number}": shards[place] for number, place in enumerate(order)}
        row_counts.check_whole(inputs)
        metadata = [read_metadata(shard) for shard in inputs.values()]
        paths = [shard.path for shard in inputs.values()]
        facts = step.gather_shards(paths, dataset.path, step.text_row_counts(metadata))
        produced = step.merge_metadata(metadata) | facts | lineage(inputs)
        produced.pop("part", None)
        dataset.metadata.update(produced)
