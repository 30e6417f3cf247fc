"""Documents as token ids and labels: encoded in batches, in Arrow arrays."""

import contextlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX
from llm_finetune.components.tokens.tokenize.conversation import Conversation, RenderedRow, render_conversation
from llm_finetune.components.tokens.tokenize.encoder import Encoder
from llm_finetune.components.tokens.tokenize.omissions import OmissionCounts, OmissionFinder
from llm_finetune.components.tokens.tokenize.placeholders import MarkedValue

ROWS_PER_BATCH = 512
"""Documents that one thread encodes at once: enough to use all cores, few enough to need little memory."""
BATCHES_AHEAD = 16
"""Tokenized batches that may wait for the writer, so that the encoder does not have to."""
MAX_ROWS_COUNTED = 10_000
"""Rows that are checked to count those with content that the chat template drops."""

_TEXTS = ["prompt", "completion"]


@dataclass(frozen=True)
class Documents:
    """Tokenized documents, in order.

    Attributes:
        row: Index of each document in its split, int64.
        input_ids: Prompt and completion, a list of int32 each.
        labels: The same lengths; `IGNORE_INDEX` for tokens that are not trained.
        untrained_answers: Number of earlier answers that cannot be trained with this chat template.
    """

    row: pa.Array
    input_ids: pa.ListArray
    labels: pa.ListArray
    untrained_answers: int = 0

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per document."""
        lengths: np.ndarray = pc.list_value_length(self.input_ids).to_numpy(zero_copy_only=False)
        return lengths

    @property
    def trained(self) -> np.ndarray:
        """Trained tokens per document."""
        labelled = self.labels.flatten().to_numpy() != IGNORE_INDEX
        return np.add.reduceat(labelled, np.cumsum(self.lengths) - self.lengths, dtype=np.int64)

    def take(self, indices: np.ndarray) -> "Documents":
        """Returns the documents at some indices."""
        index = pa.array(indices)
        return Documents(self.row.take(index), self.input_ids.take(index), self.labels.take(index))

    def truncate(self, length: int) -> "Documents":
        """Returns the documents with at most `length` tokens each."""
        ids, labels = (_list_slice(column, length) for column in (self.input_ids, self.labels))
        return Documents(self.row, ids, labels)


def concat_documents(parts: Sequence[Documents]) -> Documents:
    """Concatenates batches of documents."""
    row, ids, labels = (
        pa.concat_arrays([getattr(part, name) for part in parts]) for name in ("row", "input_ids", "labels")
    )
    return Documents(row, ids, labels)


class _ContentDropped(Exception):
    """The chat template drops content of a row."""


def tokenize_split(source: Path, split: str, encoder: Encoder, every_answer: bool) -> Iterator[Documents]:
    """Tokenizes a split, several batches in parallel.

    Args:
        source: Folder of rows with `prompt` and `completion`, or with `messages` (and `tools`).
        split: Name of the split, for messages.
        encoder: The encoder.
        every_answer: Whether every answer of a conversation is trained, or only the last one.

    Yields:
        Batches of documents, in the split's order.

    Raises:
        UserError: If the chat template refuses a conversation or drops content of it; if only special tokens of a row
            would be trained; or if the model has no embedding for a token.
    """
    names = tables.schema(source).names
    columns = [name for name in ("messages", "tools") if name in names] if "messages" in names else _TEXTS

    finder = OmissionFinder(encoder.tokenizer, every_answer)

    def work(numbered: tuple[int, pa.RecordBatch]) -> Documents:
        first, batch = numbered
        if columns is _TEXTS:
            texts = zip(*(batch[name].to_pylist() for name in _TEXTS), strict=True)
            rows = [RenderedRow(encoder.bos + prompt, completion, completion.strip()) for prompt, completion in texts]
        else:
            rows = []
            for _, row, missing in _conversations(batch, first, split, finder):
                if missing:
                    raise _ContentDropped
                rows.append(row)
        documents = _documents(rows, first, encoder)
        _check_trained_text(documents, rows, split, encoder)
        _check_token_ids(documents, split, encoder)
        return documents

    batches = _with_first_row(tables.batches(source, columns, rows=ROWS_PER_BATCH))
    try:
        yield from tables.in_parallel(work, batches, BATCHES_AHEAD)
    except _ContentDropped:
        raise UserError(_dropped_message(source, columns, split, encoder.label, finder)) from None


def _with_first_row(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields each batch with the index of its first row."""
    first = 0
    for batch in batches:
        yield first, batch
        first += batch.num_rows


def _conversations(
    batch: pa.RecordBatch, first: int, split: str, finder: OmissionFinder
) -> Iterator[tuple[int, RenderedRow, list[MarkedValue]]]:
    """Renders conversations; yields the number of each row, its text, and the values missing in the text."""
    for number, row in enumerate(batch.to_pylist(), first):
        try:
            conversation = Conversation.from_row(row["messages"], row.get("tools"))
            rendered = render_conversation(finder.tokenizer, conversation, finder.every_answer)
        except UserError as error:
            raise UserError(f"row {number} of the {split} split: {error}") from error
        yield number, rendered, finder.find(conversation, rendered)


def _dropped_message(source: Path, columns: list[str], split: str, model: str, finder: OmissionFinder) -> str:
    counts = OmissionCounts()
    with contextlib.suppress(UserError):  # another error in a later row stops the count
        for first, batch in _with_first_row(tables.batches(source, columns, rows=ROWS_PER_BATCH)):
            for number, _, missing in _conversations(batch, first, split, finder):
                counts.add(number, missing)
            if counts.counts and counts.rows >= MAX_ROWS_COUNTED:
                break
    return counts.message(model, split)


def _documents(rows: list[RenderedRow], first: int, encoder: Encoder) -> Documents:
    prompts = encoder.encode([row.prompt for row in rows], with_offsets=any(row.trained for row in rows))
    completions = encoder.encode_completions([row.completion for row in rows], prompts)
    ids, ends = array("i"), [0]
    for prompt, completion in zip(prompts, completions, strict=True):
        ids.fromlist(prompt.ids)
        ends.append(len(ids))
        ids.fromlist(encoder.completion_ids(completion))
        ends.append(len(ids))
    flat = np.frombuffer(ids, np.int32)
    lengths = np.diff(ends)
    labels = np.where(np.repeat(np.arange(len(lengths)) % 2 == 1, lengths), flat, np.int32(IGNORE_INDEX))
    for number, row in enumerate(rows):
        if row.trained:
            place_of_prompt = slice(ends[2 * number], ends[2 * number + 1])
            labels[place_of_prompt] = np.where(
                _inside(prompts[number].offsets, row.trained.values()), flat[place_of_prompt], IGNORE_INDEX
            )
    offsets = pa.array(ends[::2], pa.int32())
    return Documents(
        pa.array(np.arange(first, first + len(rows))),
        pa.ListArray.from_arrays(offsets, pa.array(flat)),
        pa.ListArray.from_arrays(offsets, pa.array(labels)),
        sum(row.untrained for row in rows),
    )


def _check_trained_text(documents: Documents, rows: list[RenderedRow], split: str, encoder: Encoder) -> None:
    """Checks that text of every row is trained, and not only special tokens (unless they are its answer)."""
    labels = documents.labels.flatten().to_numpy()
    words = (labels != IGNORE_INDEX) & ~np.isin(labels, encoder.special)
    starts = np.cumsum(documents.lengths) - documents.lengths
    empty = []
    for i in np.flatnonzero(~np.logical_or.reduceat(words, starts)):
        trained = [token for token in documents.labels[i].as_py() if token != IGNORE_INDEX]
        text = encoder.tokenizer.decode(trained)
        if not rows[i].answer or rows[i].answer not in text:
            empty.append((documents.row[i], text))
    if empty:
        row, text = empty[0]
        more = f" (and of {len(empty) - 1} of the {len(rows)} rows around it)" if len(empty) > 1 else ""
        raise UserError(
            f"row {row} of the {split} split: of its answer{more} only {text!r} would be trained, because the "
            "chat template or the tokenizer drops the rest. Remove the row, or use another base model"
        )


def _check_token_ids(documents: Documents, split: str, encoder: Encoder) -> None:
    """Checks that the model has an embedding for every token, before the training needs it."""
    ids = documents.input_ids.flatten().to_numpy()
    if not encoder.embeddings or ids.max(initial=0) < encoder.embeddings:
        return
    place = int(ids.argmax())
    row = documents.row[int(np.searchsorted(np.cumsum(documents.lengths), place, side="right"))]
    token = encoder.tokenizer.decode([ids[place]])
    raise UserError(
        f"row {row} of the {split} split contains the token {token!r} (id {ids[place]}), and the model has "
        f"embeddings for {encoder.embeddings} tokens only. Resize the model's embeddings to the tokenizer before "
        "Load Base Model, or use the tokenizer of the model"
    )


def _inside(offsets: list[tuple[int, int]], ranges: Iterable[tuple[int, int]]) -> np.ndarray:
    """Returns for each token whether all its characters are in one of the ranges."""
    start, end = np.array(offsets).T
    inside: np.ndarray = np.any([(start >= first) & (end <= last) for first, last in ranges], axis=0)
    return inside


def _list_slice(column: pa.ListArray, length: int) -> pa.ListArray:
    return pc.list_slice(column, 0, length).cast(column.type)
