"""A model's architecture on the meta device: no weight is loaded."""

import importlib.util
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.memory import Adapter, Shape

LINEAR = (nn.Linear, Conv1D)
# Layers that read the same input, which is kept once for all of them; and those whose input attention keeps anyway.
SAME_INPUT = {"q_proj": "q", "k_proj": "q", "v_proj": "q", "gate_proj": "gate", "up_proj": "gate"}
KEPT_BY_ATTENTION = {"o_proj"}


def empty_model(model_config: str | Path) -> Any:
    """Builds the architecture without weights.

    Args:
        model_config: Folder with the model's config.json.

    Returns:
        The model, all of it on the meta device.

    Raises:
        UserError: If this transformers does not know the architecture.
    """
    try:
        config = AutoConfig.from_pretrained(model_config, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.bfloat16)
    except (ValueError, KeyError) as error:
        raise UserError(f"the model's architecture can't be built: {str(error).strip()}") from error


def shape_of(model: Any) -> Shape:
    """Returns what of a model decides its memory."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, LINEAR) and module is not head]
    in_linear = _count(parameter for module in linear for parameter in module.parameters())
    visited = getattr(config, "num_experts_per_tok", None) or 1
    mlp = (getattr(config, "moe_intermediate_size", None) if visited > 1 else None) or _mlp_width(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linear_parameters=in_linear,
        other_parameters=_count(model.parameters()) - in_linear,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=width * config.num_attention_heads,
        key=width * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        heads=config.num_attention_heads,
        mlp=mlp * visited,
        vocabulary=config.vocab_size,
        norms=_norms(model, config.hidden_size) // config.num_hidden_layers,
        capped=bool(getattr(config, "attn_logit_softcapping", None)),
    )


def adapter_of(model: Any, config: LoraConfig) -> tuple[Adapter, int]:
    """Puts an adapter on an empty model and returns what of it decides memory.

    Args:
        model: A model on the meta device; it is changed.
        config: The adapter.

    Returns:
        The adapter's figures, and the parameters of the model with it.
    """
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    trainable, total = wrapped.get_nb_trainable_parameters()
    values = mask_bytes = 0
    inputs: dict[str, int] = {}
    magnitudes = _count(weight for name, weight in wrapped.named_parameters() if "lora_magnitude_vector" in name)
    for name, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer) or isinstance(module.get_base_layer(), nn.Embedding):
            continue
        layer: Any = module
        parent, _, last = name.rpartition(".")
        values += config.r + (3 * layer.out_features if config.use_dora else 0)
        if config.lora_dropout:
            values, mask_bytes = values + layer.in_features, mask_bytes + layer.in_features
        elif last not in KEPT_BY_ATTENTION:
            inputs[f"{parent}.{SAME_INPUT.get(last, last)}"] = layer.in_features
    return Adapter(trainable, values + sum(inputs.values()), mask_bytes, magnitudes), total


def shares_keys() -> bool:
    """Tells whether this torch's attention of variable length shares keys between query heads."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def liger_obstacle(model_type: str) -> str:
    """Says why Liger has no fused layers for a model, whatever the device.

    Args:
        model_type: The configuration's `model_type`.

    Returns:
        The reason, or an empty string when it has.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return "" if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f"liger-kernel has none for {model_type}"


def _norms(model: Any, width: int) -> int:
    """Returns the number of norms over the hidden state, the one before the head included."""
    norms = (module for module in model.modules() if "Norm" in type(module).__name__)
    return sum(getattr(norm, "weight", None) is not None and norm.weight.numel() == width for norm in norms)


def _mlp_width(config: Any) -> int:
    """Returns the width of the MLP; four times the hidden width where the configuration does not say."""
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return int(max(width) if isinstance(width, list | tuple) else width)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
