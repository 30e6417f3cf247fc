"""Partitions: several datasets in one artifact, in folders by their numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.row_counts import check_files, check_whole

MOST_SHARDS = 48
"""KFP gives a card all its inputs as one argument, which has 128 KiB at most; an artifact takes 1 to 2 of them."""


def part_of(partitions: str | Path, part: int) -> Path:
    """Returns the folder of a partition."""
    return Path(partitions) / f"{part:05}"


def chosen_rows(name: str, dataset: Any, partition: Mapping[str, int]) -> Path:
    """Returns the folder of the rows that a card shall read, and refuses it if rows are missing.

    Args:
        name: The input's name, for the message.
        dataset: The input artifact.
        partition: Number and rows of a partition (`part`, `rows`), as Partition Rows returns them; empty for the whole
            dataset.

    Raises:
        UserError: If the files do not hold the rows that were written.
    """
    if not partition:
        check_whole({name: dataset})
        return Path(dataset.path)
    folder = part_of(dataset.path, int(partition["part"]))
    check_files(f"{name}, partition {int(partition['part'])},", folder, int(partition["rows"]))
    return folder
