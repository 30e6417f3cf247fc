"""Writes the adapter with everything that is needed to merge and serve it."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.files import atomic_folder, write_text
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX

PARITY_ROWS = 16


def write_result(
    ft_result: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    val_tokens: Path,
    load_in_4bit: bool,
) -> None:
    """Writes the adapter with tokenizer, generation config and rows for the parity check of Merge & Export.

    Args:
        ft_result: Folder to write.
        model: The trained PEFT model.
        tokenizer: The tokenizer to serve.
        config: The base model's configuration.
        val_tokens: Validation token rows.
        load_in_4bit: Whether the frozen base was kept in NF4.
    """
    with atomic_folder(ft_result) as folder:
        model.save_pretrained(str(folder), safe_serialization=True)
        tokenizer.save_pretrained(folder)
        rows = tables.head(val_tokens, PARITY_ROWS).select(["input_ids", "labels"]).to_pylist()
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=_eos_token_ids(rows, tokenizer, config),
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        write_text(folder / "parity_prompts.json", json.dumps(rows))
        write_text(folder / "training.json", json.dumps({"load_in_4bit": load_in_4bit}))


def _eos_token_ids(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> list[int]:
    """Returns every token that ends a turn: the tokenizer's, the base model's, and those that completions end with."""
    own = config.get_text_config().eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    ends |= {row["labels"][-1] for row in rows if row["labels"][-1] in tokenizer.all_special_ids}
    return sorted(end for end in ends if end is not None and end != IGNORE_INDEX)
