"""Gather Shards: the datasets of all partitions as one."""

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
    """Puts datasets with the same columns behind one another.

    The column `row` of tokens, which numbers the rows of their texts, goes on from one dataset to the next.

    Args:
        shards: What became of each partition.
        partitions: All partitions, as Partition Rows returns them: exactly these must be there.
        dataset: Their rows, and the files that lie beside those of the first one (tokenizer, format, chat template).
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    from llm_finetune.components.data.gather_shards import step
    from llm_finetune.components.shared import row_counts
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import read_metadata

    with card(package_version):
        planned, arrived = step.numbers(partitions), step.numbers([read_metadata(shard) for shard in shards])
        order = row_counts.planned_order("partition", planned, arrived)
        inputs = {f"partition_{number}": shards[place] for number, place in enumerate(order)}
        row_counts.check_whole(inputs)
        metadata = [read_metadata(shard) for shard in inputs.values()]
        facts = step.gather_shards([shard.path for shard in inputs.values()], dataset.path, step.numbered(metadata))
        produced = step.combined(metadata) | facts | lineage(inputs)
        produced.pop("part", None)
        dataset.metadata.update(produced)
