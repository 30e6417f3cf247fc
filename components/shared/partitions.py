"""Partitions: several datasets in one artifact, in numbered folders."""

from collections.abc import Mapping
from pathlib import Path

from llm_finetune.components.shared.row_counts import Artifact, check_files, check_whole

MAX_SHARDS = 48
"""KFP passes all inputs of a card in one argument of at most 128 KiB; an artifact takes 1 to 2 KiB."""


def partition_folder(partitions: str | Path, part: int) -> Path:
    """Returns the folder of a partition."""
    return Path(partitions) / f"{part:05}"


def rows_folder(name: str, dataset: Artifact, partition: Mapping[str, int]) -> Path:
    """Returns the folder of the rows to read; raises if rows are missing.

    Args:
        name: Name of the input for the message.
        dataset: The input artifact.
        partition: Number and rows of a partition (`part`, `rows`), as returned by Partition Rows; empty for the whole
            dataset.

    Raises:
        UserError: If the files have a different number of rows than were written.
    """
    if not partition:
        check_whole({name: dataset})
        return Path(dataset.path)
    folder = partition_folder(dataset.path, int(partition["part"]))
    check_files(f"{name} partition {int(partition['part'])}", folder, int(partition["rows"]))
    return folder
