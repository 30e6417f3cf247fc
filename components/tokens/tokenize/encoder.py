"""The base model's tokenizer as it will be served: with chat template, beginning and end of a turn."""

import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from jinja2 import TemplateError
from tokenizers import Encoding

from llm_finetune.components.shared.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import TokenizersBackend


def block_torch_import() -> None:
    """Prevents transformers from importing torch in this process: tokenizers do not need it, and it takes seconds.

    Only inside a pipeline step, whose process does nothing else. The data image has no torch.
    """
    if os.environ.get("_KFP_RUNTIME") == "true" and "torch" not in sys.modules:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        sys.modules["torch"] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Encoder:
    """Encodes prompts and completions with a tokenizer.

    Attributes:
        tokenizer: The Hugging Face tokenizer; its chat template is the one to serve.
        bos: Beginning-of-sequence token for prompts that no chat template renders; empty if the model uses none.
        eos_id: Id of the end-of-sequence token; stored, because the tokenizer's own attribute is slow.
        special_ids: Ids of special tokens.
        prefix: Text that is encoded before a completion and then removed. SentencePiece-style tokenizers add a word
            boundary at the beginning of a text, which the same text after a prompt does not have; empty for others.
        embeddings: Number of the model's embeddings; 0 if its configuration is not available.
        label: Name of the model, for messages.
    """

    tokenizer: "TokenizersBackend"
    bos: str
    eos_id: int
    special_ids: frozenset[int]
    prefix: str
    embeddings: int = 0
    label: str = ""

    @cached_property
    def special(self) -> np.ndarray:
        """The ids of special tokens, as an array."""
        return np.array(sorted(self.special_ids), np.int32)

    def encode(self, texts: list[str], with_offsets: bool = False) -> list[Encoding]:
        """Encodes texts that contain their special tokens, as a server encodes a rendered chat.

        Args:
            texts: The texts.
            with_offsets: Whether to compute the character range of each token.

        Returns:
            The encodings.
        """
        backend = self.tokenizer.backend_tokenizer
        encode = backend.encode_batch if with_offsets else backend.encode_batch_fast
        encodings: list[Encoding] = encode(texts, add_special_tokens=False)
        return encodings

    def encode_completions(self, texts: list[str], prompts: list[Encoding]) -> list[tuple[Encoding, int]]:
        """Encodes the completions of prompts.

        Args:
            texts: The completions.
            prompts: The encoded prompt of each.

        Returns:
            The encoding of each completion, and the number of its leading tokens that belong to the prefix.
        """
        prefixes = [self._prefix_after(prompt) for prompt in prompts] if self.prefix else [""] * len(texts)
        lengths = {prefix: len(self.encode([prefix])[0]) for prefix in set(prefixes)}
        rows = self.encode([prefix + text for prefix, text in zip(prefixes, texts, strict=True)])
        return [(row, lengths[prefix]) for row, prefix in zip(rows, prefixes, strict=True)]

    def completion_ids(self, encoded: tuple[Encoding, int]) -> list[int]:
        """Returns the ids of a completion with its end-of-turn token.

        This is the special token that the chat template wrote at the end, else the end-of-sequence token.

        Args:
            encoded: Encoding and length of the prefix, from `encode_completions`.
        """
        encoding, prefix_length = encoded
        ids: list[int] = encoding.ids  # a new list at every call
        if prefix_length:
            del ids[:prefix_length]
        if not ids or ids[-1] not in self.special_ids:
            ids.append(self.eos_id)
        return ids

    def _prefix_after(self, prompt: Encoding) -> str:
        if not len(prompt):
            return ""
        return str(self.tokenizer.eos_token) if prompt.ids[-1] in self.special_ids else self.prefix


def load_encoder(model: str, chat_template: str | None, label: str = "") -> Encoder:
    """Loads a tokenizer and sets the chat template of the training format.

    Args:
        model: Folder or Hub id of the base model.
        chat_template: Jinja template that renders a request as the training prompt, without the beginning-of-sequence
            token; None for the model's own.
        label: Name of the model, for messages; empty for `model`.

    Returns:
        The encoder.

    Raises:
        UserError: If there is no fast tokenizer, no end-of-sequence token, or no chat template although one is needed.
    """
    from transformers import AutoTokenizer

    try:
        # A tokenizer of another class is refused below.
        tokenizer = cast("TokenizersBackend", AutoTokenizer.from_pretrained(model, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer could be loaded from {model!r}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{model!r} has only a slow tokenizer: add a tokenizer.json to the model's files")
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {model!r} has no end-of-sequence token, so generation would never stop")
    # A tokenizer.json may enable both, and documents would be truncated without a warning.
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
    prefix, embeddings = _find_prefix(tokenizer), _count_embeddings(Path(model))
    return Encoder(tokenizer, bos, tokenizer.eos_token_id, special_ids, prefix, embeddings, label or model)


def read_chat_template(sft: Path) -> str | None:
    """Returns the chat template that Format for SFT wrote with its rows; None for the base model's own."""
    file = sft / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else None


def _count_embeddings(folder: Path) -> int:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)


def _adds_bos(tokenizer: "TokenizersBackend") -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _with_bos(tokenizer: "TokenizersBackend") -> str | dict[str, str]:
    """Returns the chat template, or each of several, with the beginning token, which servers do not add to a chat."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        return {name: _prepend_bos(tokenizer, template) for name, template in own.items()}
    return _prepend_bos(tokenizer, own)


def _prepend_bos(tokenizer: "TokenizersBackend", template: str) -> str:
    try:
        text = str(
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
        )
    except TemplateError:  # the template needs more than a question; its rows will show what
        return template
    return template if text.startswith(tokenizer.bos_token) else "{{ bos_token }}" + template


def _find_prefix(tokenizer: "TokenizersBackend") -> str:
    """Returns the first prefix after which text is encoded as after a newline; special tokens never merge with text."""

    def encode_after(prefix: str, text: str) -> list[int]:
        backend = tokenizer.backend_tokenizer
        length = len(backend.encode(prefix, add_special_tokens=False))
        ids: list[int] = backend.encode(prefix + text, add_special_tokens=False).ids
        return ids[length:]

    probes = ("a", " a", "  a")
    prefixes = ("", str(tokenizer.eos_token), "\n")
    return next(
        prefix for prefix in prefixes if all(encode_after(prefix, text) == encode_after("\n", text) for text in probes)
    )
