"""The adapter's folder: everything that merging and serving need."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from llm_finetune.components.shared import tables
from llm_finetune.components.shared.files import atomic_folder, write_text
from llm_finetune.components.shared.modeling.losses import IGNORED

PARITY_ROWS = 16


def write_result(
    ft_result: Path, model: Any, tokenizer: Any, config: Any, val_tokens: Path, load_in_4bit: bool
) -> None:
    """Writes the adapter with tokenizer, generation config and rows for the merge's parity check.

    Args:
        ft_result: Folder to write.
        model: The trained PEFT model.
        tokenizer: The tokenizer as it must be served.
        config: The base model's configuration.
        val_tokens: Token rows of the validation.
        load_in_4bit: Whether the frozen base was kept in NF4.
    """
    with atomic_folder(ft_result) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        rows = tables.head(val_tokens, PARITY_ROWS).select(["input_ids", "labels"]).to_pylist()
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=_end_tokens(rows, tokenizer, config),
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        write_text(folder / "parity_prompts.json", json.dumps(rows))
        write_text(folder / "training.json", json.dumps({"load_in_4bit": load_in_4bit}))


def _end_tokens(rows: list[dict[str, Any]], tokenizer: Any, config: Any) -> list[int]:
    """Returns every token that ends a turn: the tokenizer's, the base's own, and the one the completions end with."""
    own = config.get_text_config().eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    ends |= {row["labels"][-1] for row in rows if row["labels"][-1] in tokenizer.all_special_ids}
    return sorted(end for end in ends if end is not None and end != IGNORED)
