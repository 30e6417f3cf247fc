"""Padding tokens: one rule for every batch that is filled up to the length of its longest row."""

from typing import Any

from llm_finetune.components.shared.modeling.losses import unwrapped


def ensure_padding(tokenizer: Any, model: Any) -> None:
    """Gives a tokenizer a padding token that the model has an embedding for: its own, else the end-of-sequence token.

    Many tokenizers have none, and to others one was added without resizing the model; a GPU that looks such a token up
    ends with a device-side assert. Which token fills a batch changes no figure, since padding is masked by position.

    Args:
        tokenizer: The tokenizer; its padding token is set for good, as it will be saved and served.
        model: The model, with or without an adapter.
    """
    embeddings = unwrapped(model).get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= embeddings:
        tokenizer.pad_token = tokenizer.eos_token
