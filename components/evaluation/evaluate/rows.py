"""Validation rows that are measured, read in windows."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX

ROWS_PER_WINDOW = 2048
TRAIN_ROWS_READ = 1024

Indices = NDArray[np.int64]


class TokenRow(TypedDict):
    """A row of Tokenize's validation split.

    Attributes:
        input_ids: Token ids of prompt and completion.
        labels: The same ids, -100 where the loss ignores them.
        row: Index in `val_sft`.
    """

    input_ids: list[int]
    labels: list[int]
    row: int


@dataclass(frozen=True)
class Prompt:
    """A validation prompt with its reference answer.

    Attributes:
        row: Index in `val_sft`.
        input_ids: The prompt, tokenized as for training.
        reference: Expected answer as text.
    """

    row: int
    input_ids: list[int]
    reference: str


def sample_rows(val_tokens: Path, max_samples: int, seed: int) -> Indices:
    """Samples the rows to measure.

    Args:
        val_tokens: Folder of the validation rows.
        max_samples: Number of rows; 0 for all.
        seed: Random seed.

    Returns:
        Positions in `val_tokens`, ascending.

    Raises:
        UserError: If the split is empty.
    """
    total = tables.count_rows(val_tokens)
    if not total:
        raise UserError(f"the validation rows in {val_tokens} are empty: nothing can be measured")
    count = min(max_samples or total, total)
    return np.array(sorted(random.Random(seed).sample(range(total), count)), dtype=np.int64)


def read_windows(val_tokens: Path, positions: Indices) -> Iterator[list[TokenRow]]:
    """Reads rows in order, with memory that does not grow with their number.

    Args:
        val_tokens: Folder of the validation rows.
        positions: Positions of the rows to read, ascending.

    Yields:
        The selected rows of each window of 2,048.
    """
    first = 0
    for batch in tables.batches(val_tokens, ["input_ids", "labels", "row"], rows=ROWS_PER_WINDOW):
        low, high = np.searchsorted(positions, (first, first + batch.num_rows))
        if high > low:
            yield batch.take(positions[low:high] - first).to_pylist()
        first += batch.num_rows


def answer_start(labels: Sequence[int]) -> int:
    """Returns the index of the first token of a row's last answer: the start of the last unbroken run of labels."""
    start = len(labels)
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return start


def ends_in_answer(row: TokenRow) -> bool:
    """Returns whether a row ends with an answer; the last answer of a conversation may have been truncated."""
    return row["labels"][-1] != IGNORE_INDEX


def split_prompt(row: TokenRow, tokenizer: Any) -> Prompt:
    """Splits a row into the prompt and the last answer.

    Args:
        row: A row that ends in an answer.
        tokenizer: Decodes the reference answer.
    """
    ids, start = row["input_ids"], answer_start(row["labels"])
    return Prompt(row["row"], ids[:start], tokenizer.decode(ids[start:], skip_special_tokens=True))


def read_column(val_sft: Path, column: str, indices: Indices) -> list[str]:
    """Reads a column of selected validation rows as text.

    Args:
        val_sft: Folder of the validation rows as text.
        column: Column name.
        indices: Rows to read, in any order.

    Returns:
        One text per row, in the order of `indices`; null is `(none)`.

    Raises:
        UserError: If the column or a row does not exist.
    """
    known = tables.schema(val_sft).names
    if column not in known:
        raise UserError(
            f"slice_by = {column!r}: the validation rows have no such column{nearest(column, known)} "
            f"(columns: {', '.join(known)})"
        )
    order = np.argsort(indices, kind="stable")
    ascending = indices[order]
    texts: list[str] = [""] * len(indices)
    first = 0
    for batch in tables.batches(val_sft, [column]):
        low, high = np.searchsorted(ascending, (first, first + batch.num_rows))
        values = batch[column].take(ascending[low:high] - first).to_pylist()
        for position, value in zip(order[low:high], values, strict=True):
            texts[position] = "(none)" if value is None else str(value)
        first += batch.num_rows
    if len(ascending) and ascending[-1] >= first:
        raise UserError(
            f"{val_sft} has {first} rows, but val_tokens refers to row {ascending[-1]}: the two inputs are not of the "
            "same run"
        )
    return texts


def sample_examples(train_tokens: Path, count: int, max_tokens: int, seed: int) -> list[list[int]]:
    """Samples training documents as few-shot examples.

    Args:
        train_tokens: Folder of the training rows, packed or not; documents of the first 1,024 rows are sampled.
        count: Number of documents.
        max_tokens: Maximum number of tokens of a document.
        seed: Random seed.

    Returns:
        Token ids per document, prompt and answer; empty if fewer than `count` documents are short enough.
    """
    packed = "seq_lengths" in tables.schema(train_tokens).names
    columns = ["input_ids", *(["seq_lengths"] if packed else [])]
    documents: list[list[int]] = []
    for batch in tables.batches(train_tokens, columns, rows=TRAIN_ROWS_READ):
        for row in batch.to_pylist():
            ends = np.cumsum(row["seq_lengths"] if packed else [len(row["input_ids"])]).tolist()
            documents += [row["input_ids"][a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        break
    candidates = [document for document in documents if 0 < len(document) <= max_tokens]
    return random.Random(seed).sample(candidates, count) if len(candidates) >= count else []
