"""The validation rows that are measured, read window by window."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX

ROWS_PER_WINDOW = 2048
TRAIN_ROWS_READ = 1024


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt with its reference answer.

    Attributes:
        row: Index in the validation split.
        input_ids: The prompt as it was tokenised for training.
        reference: The answer that was wanted, as text.
    """

    row: int
    input_ids: list[int]
    reference: str


def choose(val_tokens: Path, max_samples: int, seed: int) -> np.ndarray:
    """Draws the rows to measure.

    Args:
        val_tokens: Folder of the validation rows.
        max_samples: How many; 0 takes all.
        seed: Seed of the draw.

    Returns:
        Positions in `val_tokens`, ascending, int64.

    Raises:
        UserError: If there is none.
    """
    total = tables.count_rows(val_tokens)
    if not total:
        raise UserError(f"the validation rows in {val_tokens} are empty: nothing can be measured")
    count = min(max_samples or total, total)
    return np.array(sorted(random.Random(seed).sample(range(total), count)), dtype=np.int64)


def windows(val_tokens: Path, chosen: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    """Reads chosen rows in order.

    Args:
        val_tokens: Folder of the validation rows.
        chosen: Positions, ascending.

    Yields:
        Some rows at a time, with `input_ids`, `labels` and `row`, so that memory does not grow with their number.
    """
    first = 0
    for batch in tables.batches(val_tokens, ["input_ids", "labels", "row"], rows=ROWS_PER_WINDOW):
        low, high = np.searchsorted(chosen, (first, first + batch.num_rows))
        if high > low:
            yield batch.take(chosen[low:high] - first).to_pylist()
        first += batch.num_rows


def answer_start(labels: list[int]) -> int:
    """Returns where a row's last answer begins: its last unbroken run of labels."""
    start = len(labels)
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return start


def ends_in_answer(row: dict[str, Any]) -> bool:
    """Tells whether a row ends with an answer; the last one of a conversation may have been cut off."""
    return bool(row["labels"][-1] != IGNORE_INDEX)


def prompt_of(row: dict[str, Any], tokenizer: Any) -> Prompt:
    """Splits a validation row into the prompt and the last answer.

    Args:
        row: `input_ids`, `labels` and `row`, ending in an answer.
        tokenizer: Decodes the reference.

    Returns:
        The prompt.
    """
    ids, start = row["input_ids"], answer_start(row["labels"])
    return Prompt(row["row"], ids[:start], tokenizer.decode(ids[start:], skip_special_tokens=True))


def texts(val_sft: Path, column: str, wanted: np.ndarray) -> list[str]:
    """Returns a column of some validation rows as text.

    Args:
        val_sft: The validation rows as text.
        column: The column.
        wanted: Rows, in any order.

    Returns:
        A text each, in the order of `wanted`; a null is `(none)`.

    Raises:
        UserError: If the column or a row does not exist.
    """
    known = tables.schema(val_sft).names
    if column not in known:
        raise UserError(
            f"slice_by = {column!r}: the validation rows have no such column{nearest(column, known)} "
            f"(columns: {', '.join(known)})"
        )
    order = np.argsort(wanted, kind="stable")
    ascending = wanted[order]
    found: list[str] = [""] * len(wanted)
    first = 0
    for batch in tables.batches(val_sft, [column]):
        low, high = np.searchsorted(ascending, (first, first + batch.num_rows))
        values = batch[column].take(ascending[low:high] - first).to_pylist()
        for place, value in zip(order[low:high], values, strict=True):
            found[place] = "(none)" if value is None else str(value)
        first += batch.num_rows
    if len(ascending) and ascending[-1] >= first:
        raise UserError(f"{val_sft} has {first} rows, but the tokens name row {ascending[-1]}: they are of another run")
    return found


def examples(train_tokens: Path, count: int, longest: int, seed: int) -> list[list[int]]:
    """Draws training documents to show to the base model.

    Args:
        train_tokens: Training rows, packed or not; the first of them are drawn from.
        count: How many documents.
        longest: Most tokens of a document.
        seed: Seed of the draw.

    Returns:
        Token ids per document, prompt and answer; fewer than `count`, none at all, if not so many are short enough.
    """
    packed = "seq_lengths" in tables.schema(train_tokens).names
    columns = ["input_ids", *(["seq_lengths"] if packed else [])]
    documents: list[list[int]] = []
    for batch in tables.batches(train_tokens, columns, rows=TRAIN_ROWS_READ):
        for row in batch.to_pylist():
            ends = np.cumsum(row["seq_lengths"] if packed else [len(row["input_ids"])]).tolist()
            documents += [row["input_ids"][a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        break
    fitting = [document for document in documents if 0 < len(document) <= longest]
    return random.Random(seed).sample(fitting, count) if len(fitting) >= count else []
