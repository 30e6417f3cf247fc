"""The model's tokenizer, finished as it must be served: chat template, beginning and end of a turn."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.shared.errors import UserError


def leave_torch_out() -> None:
    """Keeps transformers from importing torch in this process: no tokenizer needs it, and it takes seconds.

    Only inside a pipeline step, whose process does nothing else; the data image has no torch at all.
    """
    if os.environ.get("_KFP_RUNTIME") == "true" and "torch" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        sys.modules["torch"] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and what training needs to know of it.

    Attributes:
        tokenizer: The Hugging Face tokenizer; its chat template is the one to serve.
        bos: Text to put before every prompt that is not rendered by the chat template; empty if the model has none.
        special_ids: Ids of control tokens.
        needs_anchor: Whether text encoded on its own gets a word boundary that the same text after a newline has not
            (SentencePiece-style tokenizers).
    """

    tokenizer: Any
    bos: str
    special_ids: frozenset[int]
    needs_anchor: bool

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encodes texts whose special tokens are written out, as a server encodes a rendered chat."""
        return [row.ids for row in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encodes one text; returns ids and, for each, its first character and the one after its last."""
        row = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return row.ids, row.offsets

    def encode_completions(self, texts: list[str]) -> list[list[int]]:
        """Encodes texts that continue a prompt; each ends with its end-of-turn token.

        That is the special token that a chat template wrote at the text's end, or else the end-of-sequence token.
        """
        if self.needs_anchor:
            anchor = self.encode(["\n"])[0]
            ids = [row[len(anchor) :] for row in self.encode(["\n" + text for text in texts])]
        else:
            ids = self.encode(texts)
        return [row if row and row[-1] in self.special_ids else [*row, self.tokenizer.eos_token_id] for row in ids]


def load_vocabulary(model: str, chat_template: str | None) -> Vocabulary:
    """Loads a tokenizer and gives it the chat template of the training format.

    Args:
        model: Folder or Hub id of the base model.
        chat_template: Jinja template that renders a request as the training prompt, without a beginning-of-sequence
            token; None keeps the model's own.

    Returns:
        The vocabulary.

    Raises:
        UserError: If there is no fast tokenizer, no end-of-sequence token, or no chat template where one is needed.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer could be loaded from {model!r}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{model!r} has only a slow tokenizer; add a tokenizer.json to the model's files")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {model!r} has no end-of-sequence token, so the model could never stop")
    bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
    if chat_template is not None:
        tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + chat_template
    elif not tokenizer.chat_template:
        raise UserError(
            f"template=chat, but the tokenizer of {model!r} has no chat template. "
            "Use an instruct model, or an instruction template such as the default"
        )
    special_ids = frozenset(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return Vocabulary(tokenizer, bos, special_ids, _needs_anchor(tokenizer))


def template_beside(sft: Path) -> str | None:
    """Returns the chat template that Format for SFT wrote beside its rows, or None for the base model's own."""
    file = sft / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else None


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message."""
    return str(error).strip().split("\n", 1)[0]


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _needs_anchor(tokenizer: Any) -> bool:
    backend = tokenizer.backend_tokenizer
    alone = backend.encode("a", add_special_tokens=False).ids
    newline = backend.encode("\n", add_special_tokens=False).ids
    after = backend.encode("\na", add_special_tokens=False).ids
    return bool(after[: len(newline)] == newline and after[len(newline) :] != alone)
