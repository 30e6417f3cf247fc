"""A model's architecture on the meta device, without weights."""

import importlib.util
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.memory import AdapterShape, ModelShape

LINEAR = (nn.Linear, Conv1D)
# Layers with the same input, which autograd saves once for all of them; and layers whose input attention saves already.
SAME_INPUT = {"q_proj": "q", "k_proj": "q", "v_proj": "q", "gate_proj": "gate", "up_proj": "gate"}
INPUT_SAVED_BY_ATTENTION = {"o_proj"}


def empty_model(model_config: str | Path) -> PreTrainedModel:
    """Builds the architecture without weights.

    Args:
        model_config: Folder with the model's config.json.

    Returns:
        The model on the meta device.

    Raises:
        UserError: If this version of transformers does not have the architecture.
    """
    try:
        config = AutoConfig.from_pretrained(model_config, trust_remote_code=False)
        with torch.device("meta"):
            return cast(
                PreTrainedModel,
                AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.bfloat16),
            )
    except (ValueError, KeyError) as error:
        raise UserError(f"the model's architecture can't be built: {str(error).strip()}") from error


def model_shape(model: PreTrainedModel) -> ModelShape:
    """Returns the sizes of a model that determine its memory."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, LINEAR) and module is not head]
    linear_parameters = _count_parameters(parameter for module in linear for parameter in module.parameters())
    experts = getattr(config, "num_experts_per_tok", None) or 1
    width = (getattr(config, "moe_intermediate_size", None) if experts > 1 else None) or _intermediate_size(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        linear_parameters=linear_parameters,
        other_parameters=_count_parameters(model.parameters()) - linear_parameters,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        query_width=head_dim * config.num_attention_heads,
        key_width=head_dim * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        heads=config.num_attention_heads,
        intermediate_size=width * experts,
        vocab_size=config.vocab_size,
        norms=_count_norms(model, config.hidden_size) // config.num_hidden_layers,
        softcapped=bool(getattr(config, "attn_logit_softcapping", None)),
    )


def add_adapter(model: PreTrainedModel, config: LoraConfig) -> tuple[AdapterShape, int]:
    """Adds an adapter to an empty model and returns the sizes that determine its memory.

    Args:
        model: A model on the meta device; modified in place.
        config: The adapter's configuration.

    Returns:
        The adapter's sizes, and the number of parameters of the model with it.
    """
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    trainable, total = wrapped.get_nb_trainable_parameters()
    values = mask_bytes = 0
    inputs: dict[str, int] = {}
    magnitudes = _count_parameters(
        weight for name, weight in wrapped.named_parameters() if "lora_magnitude_vector" in name
    )
    for name, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer) or isinstance(module.get_base_layer(), nn.Embedding):
            continue
        layer: Any = module
        parent, _, last = name.rpartition(".")
        values += config.r + (3 * layer.out_features if config.use_dora else 0)
        if config.lora_dropout:
            values, mask_bytes = values + layer.in_features, mask_bytes + layer.in_features
        elif last not in INPUT_SAVED_BY_ATTENTION:
            inputs[f"{parent}.{SAME_INPUT.get(last, last)}"] = layer.in_features
    return AdapterShape(trainable, values + sum(inputs.values()), mask_bytes, magnitudes), total


def varlen_supports_gqa() -> bool:
    """Returns whether this torch's variable-length attention supports grouped queries."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def liger_obstacle(model_type: str) -> str:
    """Returns why Liger has no fused layers for a model, on any device; empty if it has.

    Args:
        model_type: The configuration's `model_type`.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return "" if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f"liger-kernel has none for {model_type}"


def _count_norms(model: nn.Module, width: int) -> int:
    """Returns the number of norms over the hidden state, including the one before the head."""
    norms = (module for module in model.modules() if "Norm" in type(module).__name__)
    weights = (getattr(norm, "weight", None) for norm in norms)
    return sum(isinstance(weight, torch.Tensor) and weight.numel() == width for weight in weights)


def _intermediate_size(config: PretrainedConfig) -> int:
    """Returns the width of the MLP; four times the hidden size where the configuration has none."""
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return int(max(width) if isinstance(width, list | tuple) else width)


def _count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
