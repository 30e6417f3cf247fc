"""Merges an adapter into the weights that it was trained against."""

import contextlib
import gc
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from llm_finetune.components.shared.base_model import resolve
from llm_finetune.components.shared.causal_lm import load_base
from llm_finetune.components.shared.errors import UserError

BYTES_MERGING = 5
"""Bytes per parameter while merging: float32 weights and room for one layer's product and the logits."""


def trained_in_4bit(ft_result: str | Path) -> bool:
    """Tells whether an adapter was trained against NF4 weights."""
    path = Path(ft_result) / "training.json"
    if not path.is_file():
        raise UserError(
            f"{ft_result} holds no training.json, so it isn't known whether the adapter was trained in 4 bit: "
            "give the ft_result of Fine-Tune LoRA"
        )
    return bool(json.loads(path.read_text(encoding="utf-8"))["load_in_4bit"])


def stored_dtype(model_config: str | Path) -> torch.dtype:
    """Returns the type that the base model's weights are stored in."""
    config = AutoConfig.from_pretrained(resolve(model_config)[0], trust_remote_code=False)
    named = config.dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def load_with_adapter(model_config: str | Path, ft_result: str | Path, load_in_4bit: bool) -> Any:
    """Loads the base in float32 with the adapter beside it.

    An adapter that was trained in 4 bit has learnt to mend what the quantisation changed, so its base is quantised the
    same way and put back into float32. Added to the original weights, the same adapter is measurably worse; added in
    place to 4-bit weights, useless.

    Args:
        model_config: Folder of the base model, or its reference.
        ft_result: Folder of the adapter.
        load_in_4bit: Whether it was trained against NF4 weights.

    Returns:
        A PeftModel in evaluation mode.
    """
    device = choose_device(model_config)
    base = load_base(model_config, torch.bfloat16 if load_in_4bit else torch.float32, "sdpa", load_in_4bit, device)
    if load_in_4bit:
        base = base.dequantize().float()
        if hasattr(base.config, "quantization_config"):
            del base.config.quantization_config
    _check_vocabulary(base, Path(ft_result))
    try:
        return PeftModel.from_pretrained(base, str(ft_result)).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the adapter in {ft_result} does not fit the base model: {str(error).strip()}") from error


def merge(model: Any) -> Any:
    """Adds the adapter's product to the weights and takes the adapter off.

    Raises:
        UserError: If the adapter holds values that are not finite.
    """
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapter can't be merged: {str(error).strip()}") from error
    for parameter in merged.parameters():
        parameter.requires_grad_(False)
    return merged


def choose_device(model_config: str | Path) -> str:
    """Returns `cuda` if a GPU has room for the merge, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    stored = sum(file.stat().st_size for file in Path(resolve(model_config)[0]).glob("*.safetensors"))
    parameters = stored / stored_dtype(model_config).itemsize
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if parameters * BYTES_MERGING < free else "cpu"


def free_memory() -> None:
    """Gives the memory of dropped models back."""
    gc.collect()
    with contextlib.suppress(AssertionError):  # a CPU build of torch has no cache to empty
        torch.cuda.empty_cache()


def _check_vocabulary(base: Any, ft_result: Path) -> None:
    path = ft_result / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{ft_result} holds no tokenizer.json: give the ft_result of Fine-Tune LoRA")
    from tokenizers import Tokenizer

    tokens, rows = Tokenizer.from_file(str(path)).get_vocab_size(), base.get_input_embeddings().weight.shape[0]
    if tokens > rows:
        raise UserError(
            f"the tokenizer beside the adapter has {tokens:,} tokens, the base model has embeddings for {rows:,}: "
            "the tokenizer is not this model's"
        )
