"""Variable-length attention over the documents of one flattened row, with PyTorch's own kernel."""

import importlib.util
import inspect
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig

from llm_finetune.components.shared.modeling.architecture import varlen_supports_gqa
from llm_finetune.components.shared.modeling.attention import attention_implementation, layer_types, packing_obstacle

VARLEN = "varlen"


def varlen_obstacle(config: PretrainedConfig, bfloat16: bool) -> str:
    """Returns why the kernel cannot compute this model's attention on this machine; empty if it can.

    Args:
        config: The base model's configuration.
        bfloat16: Whether attention runs in bfloat16; the kernel does not support float32.
    """
    text = config.get_text_config()
    if not torch.cuda.is_available():
        return "it needs a GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    if not bfloat16:
        return "it does not support float32"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} does not have it"
    if getattr(text, "attn_logit_softcapping", None):
        return "the model caps its attention logits"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return "the model uses a sliding window"
    if obstacle := packing_obstacle(config):
        return obstacle
    if attention_implementation(config, VARLEN) != VARLEN or layer_types(config) - {"attention", "full_attention"}:
        return f"{config.model_type} does not use plain causal attention in all layers"
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head > 256 or head % 8:
        return f"the head dimension is {head}"
    return ""


def register_varlen() -> None:
    """Registers `attn_implementation="varlen"` in transformers.

    No mask function is registered, so that transformers builds no dense mask. Document boundaries are in
    `cu_seq_lens_q` and `max_length_q`, which TRL's padding-free collator passes.
    """
    from torch.nn.attention.varlen import varlen_attn

    supports_gqa = varlen_supports_gqa()

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Computes causal attention inside each document; query, key and value are `[1, heads, tokens, dimensions]`."""
        bounds, longest = kwargs.get("cu_seq_lens_q"), kwargs.get("max_length_q")
        if bounds is None or longest is None or query.shape[0] != 1:
            raise ValueError("varlen attention needs one flattened row with cu_seq_lens_q and max_length_q")
        if dropout:
            raise ValueError("varlen attention has no dropout")
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and not supports_gqa:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        options: dict[str, Any] = {"enable_gqa": groups > 1} if supports_gqa else {}
        if "window_size" in inspect.signature(varlen_attn).parameters:
            options["window_size"] = (-1, 0)
        else:
            options["is_causal"] = True
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        bounds = bounds.to(query.device)
        out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, **options)
        return out.unsqueeze(0), None

    AttentionInterface.register(VARLEN, attend)
