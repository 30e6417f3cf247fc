"""A few rows token by token, for people to look at."""

from pathlib import Path
from typing import Any

from llm_finetune.components.shared import tables

ROWS_SHOWN = 3
TOKENS_SHOWN = 400


def token_rows(tokenizer: Any, tokens: Path) -> list[dict[str, Any]]:
    """Returns the first rows of a tokenised split, each token with what the model learns from it.

    Args:
        tokenizer: Tokenizer that decodes the ids.
        tokens: Folder of tokenised rows.

    Returns:
        Per row: `tokens`, a list of `text`, `id`, `trained`, `special` and `begins` (first token of a document), and
        `left_out`, the number of tokens beyond the first 400.
    """
    special = set(tokenizer.added_tokens_decoder)
    shown = []
    for row in tables.head(tokens, ROWS_SHOWN).to_pylist():
        starts, position = {0}, 0
        for length in row.get("seq_lengths") or []:
            starts.add(position)
            position += length
        pairs = list(zip(row["input_ids"], row["labels"], strict=True))
        shown.append(
            {
                "tokens": [
                    {
                        "text": _visible(tokenizer.decode([token])),
                        "id": token,
                        "trained": label != -100,
                        "special": token in special,
                        "begins": i in starts and i > 0,
                    }
                    for i, (token, label) in enumerate(pairs[:TOKENS_SHOWN])
                ],
                "left_out": max(len(pairs) - TOKENS_SHOWN, 0),
            }
        )
    return shown


def _visible(text: str) -> str:
    return text.replace("\n", "⏎\n").replace("\t", "⇥") or "∅"
