"""Gather Shards: several datasets as one."""

from typing import List

from kfp import dsl

from llm_finetune.components.shared.images import data_component


@data_component()
def gather_shards(
    shards: dsl.Input[List[dsl.Dataset]],
    dataset: dsl.Output[dsl.Dataset],
    row_of: dsl.Input[List[dsl.Dataset]] = None,
    part: int = -1,
    package_version: str = "",
):
    """Puts datasets with the same columns behind one another.

    Args:
        shards: The datasets, in order.
        dataset: Their rows, and the files that lie beside those of the first one (tokenizer, format, chat template).
        row_of: Datasets, one per shard, whose rows the column `row` of the shards numbers; the numbers become those of
            these datasets gathered.
        part: Partition to take of each shard, where Partition Rows has written them; -1 takes the shards themselves.
        package_version: Version that compiled the pipeline; the step refuses another one.
    """
    from llm_finetune.components.data.gather_shards import step
    from llm_finetune.components.shared.card import card, lineage
    from llm_finetune.components.shared.metadata import recorded

    with card(package_version):
        numbered = [other.path for other in row_of] if row_of else []
        facts = step.gather_shards([shard.path for shard in shards], dataset.path, int(part), numbered)
        inputs = {f"shard_{number}": shard for number, shard in enumerate(shards)}
        dataset.metadata.update(step.combined([recorded(shard) for shard in shards]) | facts | lineage(inputs))
