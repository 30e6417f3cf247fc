"""A few rows token by token, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_finetune.components.shared import tables
from llm_finetune.components.tokens.tokenize.documents import IGNORE_INDEX

ROWS_SHOWN = 3
TOKENS_SHOWN = 400
# Bytes of a character that the tokens so far have begun and not ended.
INCOMPLETE = "�"


def token_rows(tokenizer: Any, tokens: Path) -> list[dict[str, Any]]:
    """Returns the first rows of a tokenised split, each token with what the model learns from it.

    Args:
        tokenizer: Tokenizer that decodes the ids.
        tokens: Folder of tokenised rows.

    Returns:
        Per row: `documents`, the documents that share it, each with its `length`, how many tokens are `trained`, and
        `tokens`, a list of `text`, `id`, `trained` and `special`; and `left_out`, the number of the row's tokens beyond
        the first 400.
    """
    return [_row(tokenizer, row) for row in tables.head(tokens, ROWS_SHOWN).to_pylist()]


def _row(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    special = set(tokenizer.added_tokens_decoder)
    documents, start = [], 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        shown = min(length, TOKENS_SHOWN - start)
        if shown <= 0:
            break
        ids, labels = row["input_ids"][start : start + length], row["labels"][start : start + length]
        parts = zip(token_texts(tokenizer, ids[:shown]), ids, labels, strict=False)
        documents.append(
            {
                "length": length,
                "trained": sum(label != IGNORE_INDEX for label in labels),
                "tokens": [
                    {"text": text, "id": token, "trained": label != IGNORE_INDEX, "special": token in special}
                    for text, token, label in parts
                ],
            }
        )
        start += length
    return {"documents": documents, "left_out": max(len(row["input_ids"]) - TOKENS_SHOWN, 0)}


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns the text that each token adds to the ones before it, special characters made visible.

    Decoded alone, a token loses the space that begins it in some vocabularies, and one that holds part of a character
    shows as a question mark; here the token that ends the character shows it, and those before show `·`.

    Args:
        tokenizer: Tokenizer that decodes the ids.
        ids: Tokens of one document, from its beginning.
    """
    texts, window, before = [], 0, ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[window:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if whole.endswith(INCOMPLETE) and end < len(ids):
            texts.append("·")
            continue
        texts.append(_visible(whole[len(before) :]))
        # The token before is decoded along, so that what depends on a neighbour comes out as in the whole text.
        window = end - 1
        before = tokenizer.decode(ids[window:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return texts


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n").replace("\t", "⇥") or "∅"
