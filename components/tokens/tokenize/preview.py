"""Rows token by token, for the preview page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_SHOWN = 3
TOKENS_SHOWN = 400
# Decoded text of an incomplete character.
INCOMPLETE = "�"


@dataclass(frozen=True)
class PreviewToken:
    """A token on the page.

    Attributes:
        text: Text that it adds to the tokens before it.
        id: Id of the token.
        trained: Whether it is trained.
        special: Whether it is a special token.
    """

    text: str
    id: int
    trained: bool
    special: bool


@dataclass(frozen=True)
class PreviewDocument:
    """A document of a row.

    Attributes:
        length: Number of tokens.
        trained: Number of trained tokens.
        tokens: The tokens shown.
    """

    length: int
    trained: int
    tokens: list[PreviewToken]


@dataclass(frozen=True)
class PreviewRow:
    """A row on the page.

    Attributes:
        documents: Documents of the row.
        tokens_omitted: Number of the row's tokens after the first 400.
    """

    documents: list[PreviewDocument]
    tokens_omitted: int


def preview_rows(tokenizer: "PreTrainedTokenizerBase", tokens: Path) -> list[PreviewRow]:
    """Returns the first rows of a tokenized split.

    Args:
        tokenizer: Tokenizer that decodes the ids.
        tokens: Folder of token rows.
    """
    return [_row(tokenizer, row) for row in tables.head(tokens, ROWS_SHOWN).to_pylist()]


def _row(tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any]) -> PreviewRow:
    special = set(tokenizer.added_tokens_decoder)
    documents, start = [], 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        shown = min(length, TOKENS_SHOWN - start)
        if shown <= 0:
            break
        ids, labels = row["input_ids"][start : start + length], row["labels"][start : start + length]
        parts = zip(token_texts(tokenizer, ids[:shown]), ids, labels, strict=False)
        documents.append(
            PreviewDocument(
                length,
                sum(label != IGNORE_INDEX for label in labels),
                [PreviewToken(text, token, label != IGNORE_INDEX, token in special) for text, token, label in parts],
            )
        )
        start += length
    return PreviewRow(documents, max(len(row["input_ids"]) - TOKENS_SHOWN, 0))


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """Returns the text that each token adds to the tokens before it, with special characters made visible.

    Decoded alone, a token loses its leading space in some vocabularies, and a token with a part of a character is
    decoded as a replacement character. Here the last token of the character shows it, and the others show `·`.

    Args:
        tokenizer: Tokenizer that decodes the ids.
        ids: Tokens of one document, from its beginning.
    """

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    texts, window, before = [], 0, ""
    for end in range(1, len(ids) + 1):
        whole = decode(ids[window:end])
        if whole.endswith(INCOMPLETE) and end < len(ids):
            texts.append("·")
            continue
        texts.append(_visible(whole[len(before) :]))
        # The previous token is decoded as well, so that text that depends on it is the same as in the whole document.
        window = end - 1
        before = decode(ids[window:end])
    return texts


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n").replace("\t", "⇥") or "∅"
