"""Tokenize: converts prompts and completions to packed token rows; only completions have labels."""

import gc
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import content_hash
from llm_finetune.components.shared.pages import write_page
from llm_finetune.components.shared.row_counts import check_accounted
from llm_finetune.components.tokens.tokenize.documents import Documents, concat_documents, tokenize_split
from llm_finetune.components.tokens.tokenize.encoder import Encoder, load_encoder, read_chat_template
from llm_finetune.components.tokens.tokenize.packing import pack
from llm_finetune.components.tokens.tokenize.preview import preview_rows
from llm_finetune.components.tokens.tokenize.settings import Settings

DOCUMENTS_PER_WINDOW = 8_192
"""Documents packed together: enough to fill rows almost completely, few enough to keep in memory."""
TOKENS_PER_WINDOW = 2**22
"""The same for long documents."""
TOKENS = pa.list_(pa.int32())


@dataclass
class SplitFacts:
    """Facts about one tokenized split.

    Attributes:
        documents: Input rows.
        rows: Rows written; a packed row contains several documents.
        tokens: Tokens written.
        supervised_tokens: Tokens that are trained.
        fill: Share of the rows' capacity that is used (packed), or of the longest row (not packed).
        dropped_overlength: Documents dropped because they are longer than `max_length`.
        dropped_prompt_only: Documents dropped because their prompt alone fills `max_length`.
        cut: Documents with a truncated completion.
        untrained_answers: Earlier answers of conversations that are context only, because the chat template renders
            them differently in later turns.
        shortest: Tokens of the shortest input document.
        longest: Tokens of the longest document written.
    """

    documents: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    fill: float = 0.0
    dropped_overlength: int = 0
    dropped_prompt_only: int = 0
    cut: int = 0
    untrained_answers: int = 0
    shortest: int = 0
    longest: int = 0


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
    """Tokenizes both splits.

    The columns of a packed row with documents of 3 and 4 tokens, of which the last 2 are trained::

        input_ids     11  12  13  21  22  23  24
        labels      -100  12  13 -100 -100 23  24
        seq_lengths    3           4

    Validation rows are never packed, so that each document has a loss; `row` is the index of the document. The folder
    of each split contains `tokenizer/`, the tokenizer to serve.

    Args:
        train_sft: Folder written by Format for SFT.
        val_sft: The same for the validation split.
        train_tokens: Folder to write.
        val_tokens: Folder to write.
        preview: HTML page to write.
        settings: The card's settings.
        model: Folder of the tokenizer; empty for `settings.model_name`.
        model_label: Name of that model, for messages and pages.

    Returns:
        Metadata of the train and of the validation tokens.

    Raises:
        UserError: If the tokenizer is not usable, its chat template drops content of a row, a document is too long and
            `overlength` is error, or no document is left.
    """
    if settings.num_proc:
        os.environ["RAYON_NUM_THREADS"] = str(settings.num_proc)
    name = model or settings.model_name
    encoder = load_encoder(name, read_chat_template(Path(train_sft)), model_label)
    facts = {}
    gc.freeze()  # excludes the libraries' objects from garbage collection, which takes a tenth of the time otherwise
    try:
        for split, source, target, packing in (
            ("train", train_sft, train_tokens, settings.packing),
            ("validation", val_sft, val_tokens, False),
        ):
            facts[split] = _tokenize_split(split, Path(source), Path(target), encoder, settings, packing)
    finally:
        gc.unfreeze()
    write_page(
        preview,
        Path(__file__).parent / "preview.html.jinja",
        title="Tokenize",
        model=model_label or name,
        settings=settings,
        facts=facts,
        samples={
            split: preview_rows(encoder.tokenizer, Path(target))
            for split, target in (("train", train_tokens), ("validation", val_tokens))
        },
    )
    common = {
        "tokenizer": model_label or name,
        "max_length": settings.max_length,
        "overlength": settings.overlength,
        "train_on": settings.train_on,
        "chat_template_sha": content_hash(Path(train_tokens) / "tokenizer", "*.jinja"),
    }
    return (
        {
            **asdict(facts["train"]),
            **common,
            "packing": settings.packing,
            "content_hash": content_hash(train_tokens),
        },
        {**asdict(facts["validation"]), **common, "packing": False, "content_hash": content_hash(val_tokens)},
    )


def _tokenize_split(
    split: str, source: Path, target: Path, encoder: Encoder, settings: Settings, packing: bool
) -> SplitFacts:
    facts = SplitFacts()
    columns = [("input_ids", TOKENS), ("labels", TOKENS), ("seq_lengths", TOKENS) if packing else ("row", pa.int64())]
    documents = tokenize_split(source, split, encoder, settings.train_on == "all")
    written = 0
    with tables.ShardWriter(target, pa.schema(columns)) as writer:
        for window in _windows(_fitting(documents, facts, settings, split)):
            if packing:
                written += _write_packed(writer, window, settings)
            else:
                writer.write(_batch(writer, window.input_ids, window.labels, window.row))
                written += len(window.row)
        if not writer.rows:
            raise UserError(_no_rows_message(split, facts, settings))
        dropped = {"too long": facts.dropped_overlength, "prompt too long": facts.dropped_prompt_only}
        check_accounted("Tokenize", tables.count_rows(source), written, dropped)
        encoder.tokenizer.save_pretrained(writer.folder / "tokenizer")
    facts.rows = writer.rows
    facts.fill = round(facts.tokens / (facts.rows * (settings.max_length if packing else facts.longest)), 4)
    return facts


def _fitting(documents: Iterator[Documents], facts: SplitFacts, settings: Settings, split: str) -> Iterator[Documents]:
    """Yields the documents that fit into a row, and counts all documents."""
    limit = settings.max_length
    for batch in documents:
        lengths = batch.lengths
        over = lengths > limit
        facts.documents += len(lengths)
        facts.untrained_answers += batch.untrained_answers
        facts.shortest = min(facts.shortest or int(lengths.min()), int(lengths.min()))
        if over.any():
            first = int(over.argmax())
            if settings.overlength == "error":
                raise UserError(
                    f"row {batch.row[first]} of the {split} split has {lengths[first]} tokens, more than max_length = "
                    f"{limit}. Increase max_length, or set overlength to drop or truncate"
                )
            if settings.overlength == "truncate":
                batch = batch.truncate(limit)
                kept = batch.trained > 0
                facts.dropped_prompt_only += int((~kept).sum())
                facts.cut += int((over & kept).sum())
            else:
                kept = ~over
                facts.dropped_overlength += int(over.sum())
            batch = batch.take(kept.nonzero()[0])
        if len(batch.row):
            facts.tokens += len(batch.input_ids.flatten())
            facts.supervised_tokens += int(batch.trained.sum())
            facts.longest = max(facts.longest, int(batch.lengths.max()))
            yield batch


def _windows(documents: Iterator[Documents]) -> Iterator[Documents]:
    window: list[Documents] = []
    rows = tokens = 0
    for batch in documents:
        window.append(batch)
        rows, tokens = rows + len(batch.row), tokens + len(batch.input_ids.flatten())
        if rows >= DOCUMENTS_PER_WINDOW or tokens >= TOKENS_PER_WINDOW:
            yield concat_documents(window)
            window, rows, tokens = [], 0, 0
    if window:
        yield concat_documents(window)


def _write_packed(writer: tables.ShardWriter, window: Documents, settings: Settings) -> int:
    """Writes a window of documents in packed rows, and returns the number of documents written."""
    lengths = window.lengths
    rows = pack(lengths.tolist(), settings.max_length)
    random.Random(settings.seed).shuffle(rows)  # best fit starts with the longest documents
    order = np.concatenate(rows)
    documents = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    tokens = np.concatenate([[0], np.cumsum(lengths[order])])[documents]
    in_order = window.take(order)
    ids, labels = (_lists(tokens, column.flatten()) for column in (in_order.input_ids, in_order.labels))
    writer.write(_batch(writer, ids, labels, _lists(documents, pa.array(lengths[order].astype(np.int32)))))
    return len(order)


def _batch(writer: tables.ShardWriter, *columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns), schema=writer.schema)


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _no_rows_message(split: str, facts: SplitFacts, settings: Settings) -> str:
    if not facts.documents:
        return f"the {split} split has no rows"
    return (
        f"none of the {facts.documents} documents of the {split} split fits into max_length = {settings.max_length} "
        f"tokens (the shortest has {facts.shortest}). Increase max_length, or set overlength to truncate"
    )
