"""Base and tuned model: what is known of them before their weights are loaded, and how they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from llm_finetune.components.evaluation.evaluate.adapter import with_adapter
from llm_finetune.components.shared.modeling.base_model import resolve
from llm_finetune.components.shared.modeling.causal_lm import load_base, load_config
from llm_finetune.components.shared.modeling.device import fast_dtype
from llm_finetune.components.shared.modeling.padding import ensure_pad_token


@dataclass(frozen=True)
class Models:
    """A base model and an adapter for it.

    Attributes:
        base: Folder of the base model's weights.
        adapter: Folder of the adapter.
        config: The base model's configuration, as transformers read it.
        tokenizer: The tokenizer that is served.
        ends: Token ids that end a turn.
        dtype: Precision of the weights.
        load_in_4bit: Whether the adapter was trained on an NF4 base.
    """

    base: str
    adapter: Path
    config: Any
    tokenizer: Any
    ends: list[int]
    dtype: torch.dtype
    load_in_4bit: bool

    @property
    def context(self) -> int:
        """Tokens that the model can read and write at once; 0 if it does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", 0)

    def load(self) -> Any:
        """Returns the PEFT model, on the GPU if there is one.

        Raises:
            UserError: If the weights are missing or damaged, or the adapter does not fit.
        """
        model = with_adapter(load_base(self.base, self.dtype, load_in_4bit=self.load_in_4bit), self.adapter)
        ensure_pad_token(self.tokenizer, model)
        return model


def describe(model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> Models:
    """Finds the models; no weight is read, but those of a reference are fetched.

    Args:
        model_config: Folder of the base model or its reference.
        ft_result: Folder of the adapter.
        load_in_4bit: Whether the adapter was trained on an NF4 base.

    Raises:
        UserError: If the base model cannot be fetched or read.
    """
    base, _ = resolve(model_config)
    ends = GenerationConfig.from_pretrained(ft_result).eos_token_id
    return Models(
        base=base,
        adapter=Path(ft_result),
        config=load_config(base),
        tokenizer=AutoTokenizer.from_pretrained(ft_result, trust_remote_code=False),
        ends=ends if isinstance(ends, list) else [ends],
        dtype=fast_dtype(),
        load_in_4bit=load_in_4bit,
    )
