"""Loads the base model in 16 or 32 bit, or in 4 bit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.attention import attention_implementation
from llm_finetune.components.shared.modeling.base_model import resolve
from llm_finetune.components.shared.modeling.losses import CausalLM, unwrap_peft


def load_base(
    model_config: str | Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    load_in_4bit: bool = False,
    device: str = "",
    shards: int = 1,
) -> PreTrainedModel:
    """Loads the base model.

    Args:
        model_config: Folder written by Load Base Model.
        dtype: Precision of the weights; with `load_in_4bit`, of those that are not quantised.
        attention: Preferred attention implementation; replaced where the model does not compute the same with it.
        load_in_4bit: NF4 with double quantisation and bfloat16 products (QLoRA, arXiv 2305.14314).
        device: Device to load the model on; empty for the GPU if there is one, else the CPU.
        shards: Processes that shard the weights (FSDP2); each loads its own part.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: If the weights are missing or damaged.
    """
    name, _ = resolve(model_config)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options: dict[str, Any] = {"quantization_config": nf4_config()} if load_in_4bit else {}
    if shards > 1:
        options["distributed_config"] = DistributedConfig(fsdp_size=shards)
    else:
        options["device_map"] = {"": device}
    try:
        config = load_config(name)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=attention_implementation(config, attention),
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loadable(name, error) from error
    if shards > 1:
        # No weight is divided by tensor parallelism, but PEFT reads the size 1 as a sign of it; when one process saves
        # the adapter, PEFT would wait for all the others to gather the base's weights.
        model._tp_size = None
    if load_in_4bit:
        _keep_trainable_layout(model)
    return model


def load_config(folder: str) -> PretrainedConfig:
    """Reads a model's configuration.

    Args:
        folder: Folder of the model.

    Raises:
        UserError: If there is none, or its architecture is unknown.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_loadable(folder, error) from error
    return config


def _not_loadable(folder: str, error: Exception) -> UserError:
    return UserError(f"the base model in {folder!r} could not be loaded: {str(error).strip()}")


def nf4_config() -> BitsAndBytesConfig:
    """Returns the 4-bit format that all cards use: NF4, double quantisation, bfloat16 products."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _keep_trainable_layout(model: PreTrainedModel) -> None:
    # On CPUs with AVX512-BF16 the first evaluation would repack the weights into a layout that has no gradients.
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextlib.contextmanager
def evaluation_mode(model: CausalLM) -> Iterator[None]:
    """Puts a model into evaluation mode, with an attention function for padded batches; restores both afterwards."""
    causal, training = unwrap_peft(model), model.training
    own = causal.config._attn_implementation
    attention = attention_implementation(causal.config, "eager" if own == "eager" else "sdpa")
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
