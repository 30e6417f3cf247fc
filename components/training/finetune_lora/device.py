"""How to train on the hardware at hand: the one place that decides, and says why."""

import os
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.attention import attention_implementation, packing_obstacle
from llm_finetune.components.shared.modeling.device import fast_dtype
from llm_finetune.components.training.finetune_lora.fused import fused_layers_obstacle
from llm_finetune.components.training.finetune_lora.varlen import NAME, varlen_obstacle


@dataclass(frozen=True)
class DevicePlan:
    """Choices that change the speed of training, never its result beyond rounding.

    Attributes:
        device: `cuda` or `cpu`.
        base_dtype: Precision of the frozen base weights.
        autocast: Whether matrix products run in bfloat16.
        attention: Attention function of transformers to use.
        padding_free: Whether a batch is one flattened row instead of padded ones.
        labelled_only: Whether labelled positions alone are projected (`shared.losses`); otherwise TRL's fused head.
        group_by_length: Whether a batch holds rows of like length.
        fused_layers: Whether norms, rotary embedding and SwiGLU are one kernel each.
        reasons: A line for the log per choice.
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


def plan_device(config: PretrainedConfig, packed: bool, dtype: str, plain_head: bool) -> DevicePlan:
    """Chooses the fast and correct way for the device, the model and the rows.

    Args:
        config: The base model's configuration.
        packed: Whether rows hold several documents.
        dtype: `auto`, `bfloat16` or `float32`.
        plain_head: Whether logits are the output embedding and nothing more (`shared.losses.has_plain_head`).

    Returns:
        The plan.

    Raises:
        UserError: If rows hold several documents that the model would not keep apart.
    """
    mixing = packing_obstacle(config)
    if packed and mixing:
        raise UserError(
            f"the training rows hold several documents each, but {mixing}. Set packing = false in Tokenize, so that "
            "every document is a row of its own"
        )
    if torch.cuda.is_available():
        return _plan_cuda(config, packed, dtype, mixing)
    return _plan_cpu(packed, dtype, plain_head)


def _plan_cuda(config: PretrainedConfig, packed: bool, dtype: str, mixing: str) -> DevicePlan:
    fast = fast_dtype() is torch.bfloat16
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and fast)
    obstacle = varlen_obstacle(config, bfloat16)
    attention = attention_implementation(config) if obstacle else NAME
    padded = mixing or ("eager attention fills a matrix of tokens by tokens" if attention == "eager" else "")
    flattened = packed or not padded
    unfused = fused_layers_obstacle(config.model_type) if bfloat16 else "they are for bfloat16"
    emulated = "; it only emulates them, many times slower: dtype = 'float32' is faster" if bfloat16 > fast else ""
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
            else "attention of variable length (torch varlen_attn)",
            "rows flattened without padding; loss on a fused head"
            if flattened
            else f"padded rows of like length together, because {padded}; loss on a fused head",
            f"layers not fused, because {unfused}" if unfused else "fused norms, rotary embedding and SwiGLU (Liger)",
        ),
    )


def _plan_cpu(packed: bool, dtype: str, plain_head: bool) -> DevicePlan:
    fast = fast_dtype() is torch.bfloat16
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and fast)
    single = int(os.environ.get("WORLD_SIZE", "1")) == 1
    obstacle = (
        "the head does more than project" if not plain_head
        else "rows are flattened" if packed
        else "" if single
        else "gradients of several processes are joined in the model's own forward pass"
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
            f"{'multiplies' if fast else 'does not multiply'} bfloat16 in hardware",
            "eager attention, the fastest for short rows on a CPU",
            "packed rows, flattened" if packed else "rows of like length together, which spares most of the padding",
            f"loss on TRL's head, because {obstacle}" if obstacle else "loss on labelled positions alone",
        ),
    )
