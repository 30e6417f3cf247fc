"""Documents as token ids and labels: encoded in batches and kept in Arrow arrays."""

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
from llm_finetune.components.tokens.tokenize.conversation import Conversation, RenderedRow, render_conversation
from llm_finetune.components.tokens.tokenize.encoder import Encoder
from llm_finetune.components.tokens.tokenize.omissions import OmissionCounts, OmissionFinder
from llm_finetune.components.tokens.tokenize.placeholders import MarkedValue

IGNORE_INDEX = -100
"""Label of a token that is not trained (torch.nn.CrossEntropyLoss's ignore_index)."""
ROWS_PER_BATCH = 512
"""Documents that one thread encodes at once: enough to keep all cores busy, few enough to be nothing in memory."""
BATCHES_AHEAD = 16
"""Tokenised batches that may wait while the ones before are packed and written, so that the encoder need not."""
ROWS_COUNTED = 10_000
"""Rows that are looked through to count those of which the chat template drops something."""

_TEXTS = ["prompt", "completion"]


@dataclass(frozen=True)
class Documents:
    """Some tokenised documents in order.

    Attributes:
        row: Index of each in its split, int64.
        input_ids: Prompt, then completion, a list of int32 each.
        labels: The same lengths; `IGNORE_INDEX` where nothing is trained.
        untrained_answers: Earlier answers among them that the chat template does not let train.
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

    def of(self, chosen: np.ndarray) -> "Documents":
        """Returns the documents with these indices."""
        index = pa.array(chosen)
        return Documents(self.row.take(index), self.input_ids.take(index), self.labels.take(index))

    def cut(self, length: int) -> "Documents":
        """Returns the documents with at most `length` tokens each."""
        ids, labels = (_list_slice(column, length) for column in (self.input_ids, self.labels))
        return Documents(self.row, ids, labels)


def concat_documents(parts: Sequence[Documents]) -> Documents:
    """Returns documents that came in parts as one."""
    row, ids, labels = (
        pa.concat_arrays([getattr(part, name) for part in parts]) for name in ("row", "input_ids", "labels")
    )
    return Documents(row, ids, labels)


class _Dropped(Exception):
    """The chat template drops something that a row holds."""


def tokenize_split(source: Path, split: str, encoder: Encoder, every_answer: bool) -> Iterator[Documents]:
    """Tokenises a split, several batches at once, so that no core waits while tokens are gathered.

    Args:
        source: Folder of rows with `prompt` and `completion`, or with `messages` (and `tools`).
        split: Its name, for messages.
        encoder: The tokenizer.
        every_answer: Whether every answer of a conversation is trained, or only the last one.

    Yields:
        Documents, in the split's order.

    Raises:
        UserError: If the chat template does not take a conversation, or drops something that one holds; or if nothing
            of a row would be trained but special tokens, or the model has no embedding for one of its tokens.
    """
    names = tables.schema(source).names
    columns = [name for name in ("messages", "tools") if name in names] if "messages" in names else _TEXTS

    omissions = OmissionFinder(encoder.tokenizer, every_answer)

    def work(numbered: tuple[int, pa.RecordBatch]) -> Documents:
        first, batch = numbered
        if columns is _TEXTS:
            texts = zip(*(batch[name].to_pylist() for name in _TEXTS), strict=True)
            rows = [RenderedRow(encoder.bos + prompt, completion, completion.strip()) for prompt, completion in texts]
        else:
            rows = []
            for _, row, lost in _conversations(batch, first, split, omissions):
                if lost:
                    raise _Dropped
                rows.append(row)
        documents = _documents(rows, first, encoder)
        _refuse_silence(documents, rows, split, encoder)
        _refuse_unknown_ids(documents, split, encoder)
        return documents

    batches = _numbered(tables.batches(source, columns, rows=ROWS_PER_BATCH))
    try:
        yield from tables.in_parallel(work, batches, BATCHES_AHEAD)
    except _Dropped:
        raise UserError(_what_is_dropped(source, columns, split, encoder.label, omissions)) from None


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Passes on batches, each with the index of its first row."""
    first = 0
    for batch in batches:
        yield first, batch
        first += batch.num_rows


def _conversations(
    batch: pa.RecordBatch, first: int, split: str, omissions: OmissionFinder
) -> Iterator[tuple[int, RenderedRow, list[MarkedValue]]]:
    """Renders conversations; yields the number of each, its text, and what that lacks of it."""
    for number, row in enumerate(batch.to_pylist(), first):
        try:
            conversation = Conversation.of(row["messages"], row.get("tools"))
            rendered = render_conversation(omissions.tokenizer, conversation, omissions.every_answer)
        except UserError as error:
            raise UserError(f"row {number} of the {split} split: {error}") from error
        yield number, rendered, omissions.of(conversation, rendered)


def _what_is_dropped(source: Path, columns: list[str], split: str, model: str, omissions: OmissionFinder) -> str:
    tally = OmissionCounts()
    with contextlib.suppress(UserError):  # another mistake in a later row ends the count
        for first, batch in _numbered(tables.batches(source, columns, rows=ROWS_PER_BATCH)):
            for number, _, lost in _conversations(batch, first, split, omissions):
                tally.add(number, lost)
            if tally.counts and tally.rows >= ROWS_COUNTED:
                break
    return tally.told(model, split)


def _documents(rows: list[RenderedRow], first: int, encoder: Encoder) -> Documents:
    prompts = encoder.encode([row.prompt for row in rows], with_offsets=any(row.trained for row in rows))
    completions = encoder.encode_behind([row.completion for row in rows], prompts)
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
            asked = slice(ends[2 * number], ends[2 * number + 1])
            labels[asked] = np.where(_inside(prompts[number].offsets, row.trained.values()), flat[asked], IGNORE_INDEX)
    offsets = pa.array(ends[::2], pa.int32())
    return Documents(
        pa.array(np.arange(first, first + len(rows))),
        pa.ListArray.from_arrays(offsets, pa.array(flat)),
        pa.ListArray.from_arrays(offsets, pa.array(labels)),
        sum(row.untrained for row in rows),
    )


def _refuse_silence(documents: Documents, rows: list[RenderedRow], split: str, encoder: Encoder) -> None:
    """Refuses a row of which nothing would be trained but special tokens, unless they are what it says."""
    labels = documents.labels.flatten().to_numpy()
    words = (labels != IGNORE_INDEX) & ~np.isin(labels, encoder.special)
    starts = np.cumsum(documents.lengths) - documents.lengths
    silent = []
    for i in np.flatnonzero(~np.logical_or.reduceat(words, starts)):
        trained = [token for token in documents.labels[i].as_py() if token != IGNORE_INDEX]
        text = encoder.tokenizer.decode(trained)
        if not rows[i].answer or rows[i].answer not in text:
            silent.append((documents.row[i], text))
    if silent:
        row, text = silent[0]
        more = f" (and of {len(silent) - 1} of the {len(rows)} rows around it)" if len(silent) > 1 else ""
        raise UserError(
            f"row {row} of the {split} split: of its answer{more} nothing would be trained but {text!r}, since the "
            "chat template or the tokenizer has nothing else for it. Remove the row, or take another base model"
        )


def _refuse_unknown_ids(documents: Documents, split: str, encoder: Encoder) -> None:
    """Refuses a token that the model has no embedding for, here and not on the GPU."""
    ids = documents.input_ids.flatten().to_numpy()
    if not encoder.embeddings or ids.max(initial=0) < encoder.embeddings:
        return
    place = int(ids.argmax())
    row = documents.row[int(np.searchsorted(np.cumsum(documents.lengths), place, side="right"))]
    token = encoder.tokenizer.decode([ids[place]])
    raise UserError(
        f"row {row} of the {split} split holds the token {token!r} (id {ids[place]}), and the model has "
        f"embeddings for {encoder.embeddings} tokens only. Resize the model's embeddings to the tokenizer before "
        "loading it, or take the tokenizer that belongs to the model"
    )


def _inside(offsets: list[tuple[int, int]], ranges: Iterable[tuple[int, int]]) -> np.ndarray:
    """Tells for each token whether all its characters lie in one of the ranges."""
    start, end = np.array(offsets).T
    return np.any([(start >= first) & (end <= last) for first, last in ranges], axis=0)


def _list_slice(column: pa.ListArray, length: int) -> pa.ListArray:
    return pc.list_slice(column, 0, length).cast(column.type)
