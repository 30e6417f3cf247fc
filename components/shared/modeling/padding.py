"""The padding token, chosen in the same way for training and evaluation."""

from typing import cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from llm_finetune.components.shared.modeling.losses import CausalLM, unwrap_peft


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: CausalLM) -> None:
    """Gives a tokenizer a padding token that the model has an embedding for: its own, else the end-of-sequence token.

    Many tokenizers have no padding token. Others got one without a resize of the model's embeddings; looking it up on a
    GPU fails with a device-side assert. The choice changes no result, because padding is masked by position.

    Args:
        tokenizer: The tokenizer; its padding token is changed, and saved and served with it.
        model: The model, with or without an adapter.
    """
    embedding = cast(nn.Embedding, unwrap_peft(model).get_input_embeddings())
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= embedding.weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token
