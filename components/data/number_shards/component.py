"""Number Shards: what a loop over shards counts."""

from typing import List

from llm_finetune.components.shared.images import data_component


@data_component()
def number_shards(shards: int, package_version: str = "") -> List[int]:
    """Returns the numbers of so many shards, because a pipeline can't count by itself when it runs.

    Args:
        shards: How many.
        package_version: Version that compiled the pipeline; the step refuses another one.

    Returns:
        0, 1, … up to one below.
    """
    from llm_finetune.components.shared.card import card

    with card(package_version):
        numbers = list(range(int(shards)))
    return numbers
