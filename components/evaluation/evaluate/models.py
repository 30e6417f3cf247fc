"""Base and tuned model: their description before weights are loaded, and their loading."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from llm_finetune.components.evaluation.evaluate.adapter import load_adapter
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
        config: The base model's transformers configuration.
        tokenizer: Tokenizer of the tuned model.
        stop_token_ids: Token ids that end a turn.
        dtype: Precision of the weights.
        load_in_4bit: Whether the adapter was trained on an NF4 base.
    """

    base: str
    adapter: Path
    config: Any
    tokenizer: Any
    stop_token_ids: list[int]
    dtype: torch.dtype
    load_in_4bit: bool

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of prompt and answer; 0 if the configuration has none."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", 0)

    def load(self) -> Any:
        """Returns the PEFT model, on the GPU if one is available.

        Raises:
            UserError: If the weights are missing or damaged, or the adapter does not fit.
        """
        model = load_adapter(load_base(self.base, self.dtype, load_in_4bit=self.load_in_4bit), self.adapter)
        ensure_pad_token(self.tokenizer, model)
        return model


def describe(model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> Models:
    """Reads configuration and tokenizer; weights are not loaded, but those of a reference are downloaded.

    Args:
        model_config: Folder of the base model, or of a reference to it.
        ft_result: Folder of the adapter.
        load_in_4bit: Whether the adapter was trained on an NF4 base.

    Raises:
        UserError: If the base model cannot be downloaded or read.
    """
    base, _ = resolve(model_config)
    eos = GenerationConfig.from_pretrained(ft_result).eos_token_id
    return Models(
        base=base,
        adapter=Path(ft_result),
        config=load_config(base),
        tokenizer=AutoTokenizer.from_pretrained(ft_result, trust_remote_code=False),
        stop_token_ids=eos if isinstance(eos, list) else [eos],
        dtype=fast_dtype(),
        load_in_4bit=load_in_4bit,
    )
