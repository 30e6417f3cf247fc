"""Tokenize: prompts and completions to packed token rows whose labels are the completions alone."""

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.tokens.tokenize.conversation import RenderedRow, render_conversation
from llm_finetune.components.tokens.tokenize.packing import pack
from llm_finetune.components.tokens.tokenize.settings import Settings
from llm_finetune.components.tokens.tokenize.view import token_rows
from llm_finetune.components.tokens.tokenize.vocabulary import Vocabulary, load_vocabulary, template_beside

IGNORED = -100
"""Label of a token that is not trained (torch.nn.CrossEntropyLoss's ignore_index)."""
DOCUMENTS_PER_WINDOW = 65_536
"""Documents packed together: enough for rows that are full to a fraction of a percent, few enough to stay in memory."""
TOKENS = pa.list_(pa.int32())


@dataclass
class SplitFacts:
    """What became of one split.

    Attributes:
        documents: Rows that came in.
        rows: Rows written; with packing several documents share one.
        tokens: Tokens written.
        supervised_tokens: Tokens that are trained.
        fill: Share of the rows' capacity that is used (packed), or of the longest row (not packed).
        dropped_overlength: Documents left out because they are longer than `max_length`.
        dropped_prompt_only: Documents left out because their prompt alone fills `max_length`.
        cut: Documents whose completion was cut.
        lengths: Documents by number of tokens, before anything was dropped, in 40 equal steps up to the longest.
        longest: Tokens of the longest document.
    """

    documents: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    fill: float = 0.0
    dropped_overlength: int = 0
    dropped_prompt_only: int = 0
    cut: int = 0
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    def metadata(self) -> dict[str, Any]:
        """Returns the facts as plain values."""
        return {name: value for name, value in vars(self).items() if name != "lengths"}


@dataclass(frozen=True)
class Document:
    """One tokenised document.

    Attributes:
        row: Its index in the split.
        input_ids: Prompt, then completion.
        labels: The same length; `IGNORED` where nothing is trained.
    """

    row: int
    input_ids: list[int]
    labels: list[int]


def tokenize(
    train_sft: str | Path,
    val_sft: str | Path,
    train_tokens: str | Path,
    val_tokens: str | Path,
    preview: str | Path,
    settings: Settings,
    model: str = "",
    model_label: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokenises both splits.

    A packed row and its columns, documents of 3 and 4 tokens whose last 2 are trained::

        input_ids     11  12  13  21  22  23  24
        labels      -100  12  13 -100 -100 23  24
        seq_lengths    3           4

    Validation rows are never packed: one per document, with `row` naming the document, so that losses can be told
    apart. Beside each split lies `tokenizer/`, the tokenizer to serve.

    Args:
        train_sft: Folder written by Format for SFT.
        val_sft: The same for the validation split.
        train_tokens: Folder to write.
        val_tokens: Folder to write.
        preview: HTML page to write.
        settings: The card's settings.
        model: Folder to take the tokenizer from; empty takes `settings.model_name`.
        model_label: Name of that folder's model for people.

    Returns:
        Metadata of the train and of the validation tokens.

    Raises:
        UserError: If the tokenizer is not usable, a document is too long and `overlength` is error, or none is left.
    """
    if settings.num_proc:
        os.environ["RAYON_NUM_THREADS"] = str(settings.num_proc)
    name = model or settings.model_name
    vocabulary = load_vocabulary(name, template_beside(Path(train_sft)))
    facts = {}
    for split, source, target, packing in (
        ("train", train_sft, train_tokens, settings.packing),
        ("validation", val_sft, val_tokens, False),
    ):
        facts[split] = _tokenize_split(split, Path(source), Path(target), vocabulary, settings, packing)
    write_page(
        preview,
        Path(__file__).parent / "preview.html.jinja",
        title="Tokenize",
        model=model_label or name,
        settings=settings,
        facts=facts,
        samples={
            split: token_rows(vocabulary.tokenizer, Path(target))
            for split, target in (("train", train_tokens), ("validation", val_tokens))
        },
    )
    common = {
        "tokenizer": model_label or name,
        "max_length": settings.max_length,
        "overlength": settings.overlength,
        "chat_template_sha": content_hash(Path(train_tokens) / "tokenizer", "*.jinja"),
    }
    return (
        {
            **facts["train"].metadata(),
            **common,
            "packing": settings.packing,
            "content_hash": content_hash(train_tokens),
        },
        {**facts["validation"].metadata(), **common, "packing": False, "content_hash": content_hash(val_tokens)},
    )


def _tokenize_split(
    split: str, source: Path, target: Path, vocabulary: Vocabulary, settings: Settings, packing: bool
) -> SplitFacts:
    facts = SplitFacts()
    columns = [("input_ids", TOKENS), ("labels", TOKENS), ("seq_lengths", TOKENS) if packing else ("row", pa.int64())]
    documents = _fitting(_documents(source, vocabulary), facts, settings, split)
    with tables.ShardWriter(target, pa.schema(columns)) as writer:
        for window in _windows(documents, DOCUMENTS_PER_WINDOW):
            if packing:
                _write_packed(writer, window, settings)
            else:
                _write_plain(writer, window)
        if not writer.rows:
            raise UserError(_nothing_left(split, facts, settings))
        vocabulary.tokenizer.save_pretrained(writer.folder / "tokenizer")
    facts.rows = writer.rows
    facts.fill = round(facts.tokens / (facts.rows * (settings.max_length if packing else facts.longest)), 4)
    return facts


def _documents(source: Path, vocabulary: Vocabulary) -> Iterator[Document]:
    first = 0
    chat = "messages" in tables.schema(source).names
    for batch in tables.batches(source, ["messages"] if chat else ["prompt", "completion"], rows=2048):
        rendered = _rendered(batch, vocabulary, chat)
        prompts = vocabulary.encode([row.prompt for row in rendered])
        completions = vocabulary.encode_completions([row.completion for row in rendered])
        for i, (row, prompt, completion) in enumerate(zip(rendered, prompts, completions, strict=True)):
            labels = _earlier_turns(row, prompt, vocabulary) if row.trained else [IGNORED] * len(prompt)
            yield Document(first + i, prompt + completion, labels + completion)
        first += len(rendered)


def _rendered(batch: pa.RecordBatch, vocabulary: Vocabulary, chat: bool) -> list[RenderedRow]:
    if chat:
        return [render_conversation(vocabulary.tokenizer, messages) for messages in batch["messages"].to_pylist()]
    texts = zip(batch["prompt"].to_pylist(), batch["completion"].to_pylist(), strict=True)
    return [RenderedRow(vocabulary.bos + prompt, completion) for prompt, completion in texts]


def _earlier_turns(row: RenderedRow, prompt: list[int], vocabulary: Vocabulary) -> list[int]:
    ids, offsets = vocabulary.encode_with_offsets(row.prompt)
    labels = [IGNORED] * len(ids)
    for position, (start, end) in enumerate(offsets):
        if any(first <= start and end <= last for first, last in row.trained):
            labels[position] = prompt[position]
    return labels


def _fitting(documents: Iterator[Document], facts: SplitFacts, settings: Settings, split: str) -> Iterator[Document]:
    """Passes on the documents that fit, and counts all."""
    limit = settings.max_length
    for document in documents:
        length = len(document.input_ids)
        facts.documents += 1
        facts.lengths[length] += 1
        facts.longest = max(facts.longest, min(length, limit))
        if length > limit:
            if settings.overlength == "error":
                raise UserError(
                    f"row {document.row} of the {split} split has {length} tokens, more than max_length = {limit}. "
                    "Raise max_length, or set overlength to drop or truncate"
                )
            if settings.overlength == "drop":
                facts.dropped_overlength += 1
                continue
            if all(label == IGNORED for label in document.labels[:limit]):
                facts.dropped_prompt_only += 1
                continue
            facts.cut += 1
            document = Document(document.row, document.input_ids[:limit], document.labels[:limit])
        facts.tokens += len(document.input_ids)
        facts.supervised_tokens += len(document.labels) - document.labels.count(IGNORED)
        yield document


def _windows(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    window: list[Document] = []
    for document in documents:
        window.append(document)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _write_plain(writer: tables.ShardWriter, window: list[Document]) -> None:
    rows = pa.array([document.row for document in window], pa.int64())
    ids, labels = _lists([d.input_ids for d in window]), _lists([d.labels for d in window])
    writer.write(pa.RecordBatch.from_arrays([ids, labels, rows], schema=writer.schema))


def _write_packed(writer: tables.ShardWriter, window: list[Document], settings: Settings) -> None:
    rows = pack([len(document.input_ids) for document in window], settings.max_length)
    random.Random(settings.seed).shuffle(rows)  # best fit puts the longest documents first
    ids = _lists([[token for i in row for token in window[i].input_ids] for row in rows])
    labels = _lists([[token for i in row for token in window[i].labels] for row in rows])
    lengths = _lists([[len(window[i].input_ids) for i in row] for row in rows])
    writer.write(pa.RecordBatch.from_arrays([ids, labels, lengths], schema=writer.schema))


def _lists(rows: list[list[int]]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.fromiter((token for row in rows for token in row), np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _nothing_left(split: str, facts: SplitFacts, settings: Settings) -> str:
    if not facts.documents:
        return f"the {split} split has no rows"
    return (
        f"none of the {facts.documents} documents of the {split} split fits into max_length = {settings.max_length} "
        f"tokens (the shortest has {min(facts.lengths)}). Raise max_length, or set overlength to truncate"
    )
