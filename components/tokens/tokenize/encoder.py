"""The model's tokenizer, finished as it must be served: chat template, beginning and end of a turn."""

import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import Encoding

from llm_finetune.components.shared.errors import UserError


def block_torch_import() -> None:
    """Keeps transformers from importing torch in this process: no tokenizer needs it, and it takes seconds.

    Only inside a pipeline step, whose process does nothing else; the data image has no torch at all.
    """
    if os.environ.get("_KFP_RUNTIME") == "true" and "torch" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        sys.modules["torch"] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and what training needs to know of it.

    Attributes:
        tokenizer: The Hugging Face tokenizer; its chat template is the one to serve.
        bos: Text to put before every prompt that is not rendered by the chat template; empty if the model has none.
        eos_id: Id of the end-of-sequence token; asked for once, since that takes longer than to encode a word.
        special_ids: Ids of control tokens.
        anchor: Text to encode before a completion and cut off again, where text on its own gets a word boundary that
            the same text behind a prompt has not (SentencePiece-style tokenizers); empty elsewhere.
        embeddings: Tokens that the model has embeddings for; 0 where its configuration is not at hand.
        label: Name of the model for people.
    """

    tokenizer: Any
    bos: str
    eos_id: int
    special_ids: frozenset[int]
    anchor: str
    embeddings: int = 0
    label: str = ""

    @cached_property
    def special(self) -> np.ndarray:
        """The ids of control tokens as an array."""
        return np.array(sorted(self.special_ids), np.int32)

    def encode(self, texts: list[str], with_offsets: bool = False) -> list[Encoding]:
        """Encodes texts whose special tokens are written out, as a server encodes a rendered chat.

        Args:
            texts: The texts.
            with_offsets: Whether each token's first character and the one after its last are wanted, too.

        Returns:
            The encodings, with their `ids` and `offsets`.
        """
        backend = self.tokenizer.backend_tokenizer
        encode = backend.encode_batch if with_offsets else backend.encode_batch_fast
        encodings: list[Encoding] = encode(texts, add_special_tokens=False)
        return encodings

    def encode_behind(self, texts: list[str], prompts: list[Encoding]) -> list[tuple[Encoding, int]]:
        """Encodes texts that continue a prompt.

        Args:
            texts: The texts.
            prompts: The prompt of each.

        Returns:
            Per text its encoding, and how many tokens of that come before the text.
        """
        anchors = [self._anchor_behind(prompt) for prompt in prompts] if self.anchor else [""] * len(texts)
        cuts = {anchor: len(self.encode([anchor])[0]) for anchor in set(anchors)}
        rows = self.encode([anchor + text for anchor, text in zip(anchors, texts, strict=True)])
        return [(row, cuts[anchor]) for row, anchor in zip(rows, anchors, strict=True)]

    def completion_ids(self, encoded: tuple[Encoding, int]) -> list[int]:
        """Returns the ids of a text that `encode_behind` encoded, up to its end-of-turn token.

        That is the special token that a chat template wrote at the text's end, or else the end-of-sequence token.
        """
        encoding, cut = encoded
        ids: list[int] = encoding.ids  # a list of its own at every call
        if cut:
            del ids[:cut]
        if not ids or ids[-1] not in self.special_ids:
            ids.append(self.eos_id)
        return ids

    def _anchor_behind(self, prompt: Encoding) -> str:
        if not len(prompt):
            return ""
        return str(self.tokenizer.eos_token) if prompt.ids[-1] in self.special_ids else self.anchor


def load_encoder(model: str, chat_template: str | None, label: str = "") -> Encoder:
    """Loads a tokenizer and gives it the chat template of the training format.

    Args:
        model: Folder or Hub id of the base model.
        chat_template: Jinja template that renders a request as the training prompt, without a beginning-of-sequence
            token; None keeps the model's own.
        label: Name of the model for people; empty takes `model`.

    Returns:
        The encoder.

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
    # A tokenizer.json may bring both along, and documents would be cut without a word.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
    if chat_template is not None:
        tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + chat_template
    elif not tokenizer.chat_template:
        raise UserError(
            f"template=chat, but the tokenizer of {model!r} has no chat template. "
            "Use an instruct model, or an instruction template such as the default"
        )
    elif bos:
        tokenizer.chat_template = _with_bos(tokenizer)
    special_ids = frozenset(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    anchor, embeddings = _anchor(tokenizer), _embeddings(Path(model))
    return Encoder(tokenizer, bos, tokenizer.eos_token_id, special_ids, anchor, embeddings, label or model)


def read_chat_template(sft: Path) -> str | None:
    """Returns the chat template that Format for SFT wrote beside its rows, or None for the base model's own."""
    file = sft / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else None


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message."""
    return str(error).strip().split("\n", 1)[0]


def _embeddings(folder: Path) -> int:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _with_bos(tokenizer: Any) -> str | dict[str, str]:
    """Returns the chat template, or each of several, with the beginning token, which nobody else adds to a chat."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        return {name: _beginning(tokenizer, template) for name, template in own.items()}
    return _beginning(tokenizer, own)


def _beginning(tokenizer: Any, template: str) -> str:
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
    except TemplateError:  # one that wants more than a question; its rows will say what
        return template
    return template if text.startswith(tokenizer.bos_token) else "{{ bos_token }}" + template


def _anchor(tokenizer: Any) -> str:
    """Returns the first anchor behind which text is encoded as behind a newline; a special token merges with none."""

    def behind(anchor: str, text: str) -> list[int]:
        backend = tokenizer.backend_tokenizer
        cut = len(backend.encode(anchor, add_special_tokens=False))
        ids: list[int] = backend.encode(anchor + text, add_special_tokens=False).ids
        return ids[cut:]

    probes = ("a", " a", "  a")
    anchors = ("", str(tokenizer.eos_token), "\n")
    return next(anchor for anchor in anchors if all(behind(anchor, text) == behind("\n", text) for text in probes))
