"""Chooses precision, attention, batching and loss for the hardware, the model and the rows; nothing else does."""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.attention import attention_implementation, packing_obstacle
from llm_finetune.components.shared.modeling.device import fast_dtype
from llm_finetune.components.shared.modeling.losses import has_plain_head
from llm_finetune.components.training.finetune_lora.distributed import world_size
from llm_finetune.components.training.finetune_lora.fused import fused_layers_obstacle
from llm_finetune.components.training.finetune_lora.varlen import VARLEN, varlen_obstacle


@dataclass(frozen=True)
class DevicePlan:
    """Choices that change the speed of the training but, except for rounding, not its result.

    Attributes:
        device: `cuda` or `cpu`.
        base_dtype: Precision of the frozen base weights.
        autocast: Whether matrix products run in bfloat16.
        attention: Attention implementation of transformers.
        padding_free: Whether a batch is one flattened row instead of padded rows.
        labelled_only: Whether only labelled positions are projected to the vocabulary (`shared.modeling.losses`);
            otherwise TRL's fused head computes the loss.
        group_by_length: Whether a batch contains rows of similar length.
        fused_layers: Whether norms, rotary embedding and SwiGLU are one kernel each.
        reasons: One log line per choice.
    """

    device: str
    base_dtype: torch.dtype
    autocast: bool
    attention: str
    padding_free: bool
    labelled_only: bool
    group_by_length: bool
    fused_layers: bool
    reasons: tuple[str, ...]


def plan_device(config: PretrainedConfig, packed: bool, dtype: str) -> DevicePlan:
    """Chooses the fastest correct options.

    Args:
        config: The base model's configuration.
        packed: Whether rows contain several documents.
        dtype: `auto`, `bfloat16` or `float32`.

    Returns:
        The plan.

    Raises:
        UserError: If rows contain several documents that the model can't keep separate.
    """
    obstacle = packing_obstacle(config)
    if packed and obstacle:
        raise UserError(
            f"the training rows contain several documents each, but {obstacle}. Set packing = false in Tokenize, so "
            "that every document is a row of its own"
        )
    if torch.cuda.is_available():
        return _plan_cuda(config, packed, dtype, obstacle)
    return _plan_cpu(config, packed, dtype)


def _plan_cuda(config: PretrainedConfig, packed: bool, dtype: str, packing_obstacle: str) -> DevicePlan:
    fast = fast_dtype() is torch.bfloat16
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and fast)
    obstacle = varlen_obstacle(config, bfloat16)
    attention = attention_implementation(config) if obstacle else VARLEN
    padded = packing_obstacle or (
        "eager attention computes a matrix of tokens by tokens" if attention == "eager" else ""
    )
    flattened = packed or not padded
    unfused = fused_layers_obstacle(config.model_type) if bfloat16 else "they are for bfloat16"
    emulated = "; this GPU emulates them, which is much slower: set dtype = 'float32'" if bfloat16 > fast else ""
    return DevicePlan(
        device="cuda",
        base_dtype=torch.bfloat16 if bfloat16 else torch.float32,
        autocast=bfloat16,
        attention=attention,
        padding_free=flattened,
        labelled_only=False,
        group_by_length=not flattened,
        fused_layers=not unfused,
        reasons=(
            f"{torch.cuda.get_device_name()}: {'bfloat16' if bfloat16 else 'float32'} products{emulated}",
            f"attention {attention}, because {obstacle}"
            if obstacle
            else "variable-length attention (torch varlen_attn)",
            "rows flattened without padding; loss on a fused head"
            if flattened
            else f"padded rows, grouped by length, because {padded}; loss on a fused head",
            f"layers not fused, because {unfused}" if unfused else "fused norms, rotary embedding and SwiGLU (Liger)",
        ),
    )


def _plan_cpu(config: PretrainedConfig, packed: bool, dtype: str) -> DevicePlan:
    fast = fast_dtype() is torch.bfloat16
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and fast)
    obstacle = (
        "the head caps or scales the logits" if not has_plain_head(config)
        else "rows are flattened" if packed
        else "" if world_size() == 1
        else "the gradients of several processes are reduced in the model's own forward pass"
    )  # fmt: skip
    return DevicePlan(
        device="cpu",
        base_dtype=torch.float32,
        autocast=bfloat16,
        attention="eager",
        padding_free=packed,
        labelled_only=not obstacle,
        group_by_length=not packed,
        fused_layers=False,
        reasons=(
            f"CPU: {'bfloat16' if bfloat16 else 'float32'} products, because it "
            f"{'has' if fast else 'has no'} bfloat16 instructions",
            "eager attention, the fastest for short rows on a CPU",
            "packed rows, flattened" if packed else "rows grouped by length, which avoids most of the padding",
            f"loss on TRL's head, because {obstacle}" if obstacle else "loss on labelled positions alone",
        ),
    )
