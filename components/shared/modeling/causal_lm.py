"""Loads the base model, in 16 or 32 bit or in 4 bit, and adapters on top of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.attention import attention_of
from llm_finetune.components.shared.modeling.base_model import resolve
from llm_finetune.components.shared.modeling.losses import unwrapped


def load_base(
    model_config: str | Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    load_in_4bit: bool = False,
    device: str = "",
    parts: int = 1,
) -> PreTrainedModel:
    """Loads the base model.

    Args:
        model_config: Folder written by Load Base Model.
        dtype: Precision of the weights; with `load_in_4bit`, of what is not quantised.
        attention: Attention function of transformers; a model that does not compute the same with it gets another.
        load_in_4bit: NF4 with double quantisation and bfloat16 products (QLoRA, arXiv 2305.14314).
        device: Where to load it; empty takes the GPU if there is one.
        parts: Processes that divide the weights between them (FSDP2); each loads its part alone.

    Returns:
        The model in evaluation mode, on the GPU if there is one.

    Raises:
        UserError: If the weights are missing or damaged.
    """
    name, _ = resolve(model_config)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"quantization_config": nf4_config()} if load_in_4bit else {}
    options |= {"distributed_config": DistributedConfig(fsdp_size=parts)} if parts > 1 else {"device_map": {"": device}}
    try:
        config = load_config(name)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=attention_of(config, attention),
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(name, error) from error
    if parts > 1:
        # No weight is divided by tensor parallelism, but PEFT takes the size 1 for a sign of it and, where one process
        # saves the adapter, waits for all the others to gather the base's weights.
        model._tp_size = None
    if load_in_4bit:
        _keep_trainable_layout(model)
    return model


def load_config(folder: str) -> Any:
    """Reads a model's configuration.

    Args:
        folder: Folder of the model.

    Returns:
        transformers' configuration.

    Raises:
        UserError: If there is none, or of no known architecture.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: str, error: Exception) -> UserError:
    return UserError(f"the base model in {folder!r} could not be loaded: {str(error).strip()}")


def nf4_config() -> BitsAndBytesConfig:
    """Returns the 4-bit format of every card: NF4, double quantisation, bfloat16 products."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _keep_trainable_layout(model: PreTrainedModel) -> None:
    # On CPUs with AVX512-BF16 the first evaluation would repack the weights, for good, into a layout without gradients.
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Puts a model into evaluation mode with an attention function that takes padded batches; undoes both after."""
    causal, training = unwrapped(model), model.training
    own = causal.config._attn_implementation
    attention = attention_of(causal.config, "eager" if own == "eager" else "sdpa")
    model.eval()
    if own != attention:
        causal.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            yield
    finally:
        if causal.config._attn_implementation != own:
            causal.set_attn_implementation(own)
        model.train(training)
