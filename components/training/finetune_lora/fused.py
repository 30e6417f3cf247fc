"""Fused layers: Liger's norms, rotary embedding and SwiGLU, and the products of LoRA layers."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from llm_finetune.components.shared.modeling.architecture import liger_obstacle
from llm_finetune.components.shared.modeling.losses import CausalLM, unwrap_peft


def fused_layers_obstacle(model_type: str) -> str:
    """Returns why the layers of a model cannot be fused on this machine; empty if they can.

    Args:
        model_type: The configuration's `model_type`.
    """
    if not torch.cuda.is_available():
        return "they need a GPU"
    return liger_obstacle(model_type)


def fuse_layers(model: CausalLM) -> None:
    """Replaces a model's layers by Liger's, with or without an adapter; the trainer still computes the loss."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=unwrap_peft(model), cross_entropy=False, fused_linear_cross_entropy=False)


def disable_input_casts(model: torch.nn.Module) -> None:
    """Disables PEFT's float32 copy of every adapter layer's input, which autocast casts back to bfloat16.

    The products and their gradients are bitwise the same; the copies take memory and time.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "cast_input_dtype_enabled"):
            layer: Any = module
            layer.cast_input_dtype_enabled = False


class LoraProduct(torch.autograd.Function):
    """`x Wᵀ + scaling (x Aᵀ) Bᵀ` with W frozen; the adapter's output is accumulated in its matrix product.

    PEFT's forward pass writes, scales and adds the adapter's output, and its backward pass adds two gradients of the
    input: six passes over memory per layer, which are avoided here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: Any,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Returns the layer's output."""
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.t()
        out = torch.nn.functional.linear(flat, _weight(base), base.bias)
        out.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(flat, a, b, low)
        ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
        return out.view(*x.shape[:-1], b.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Returns the gradients of the input and of the adapter."""
        flat, a, b, low = ctx.saved_tensors
        out = gradients[0].reshape(-1, b.shape[0])
        down = (out @ b) * ctx.scaling
        x = None
        if ctx.needs_input_grad[0]:
            x = (out @ _weight(ctx.base)).addmm_(down, a).view(ctx.shape)
        return x, None, down.t() @ flat, (out.t() @ low) * ctx.scaling, None


def _weight(base: Any) -> torch.Tensor:
    """Returns a layer's weight; a 4-bit weight is dequantized, in the forward and again in the backward pass."""
    if not hasattr(base.weight, "quant_state"):
        weight: torch.Tensor = base.weight
        return weight
    from bitsandbytes.functional import dequantize_4bit

    weight_16bit: torch.Tensor = dequantize_4bit(base.weight.data, base.weight.quant_state)
    return weight_16bit.to(base.compute_dtype)


def fuse_adapters(model: torch.nn.Module) -> int:
    """Makes plain LoRA layers (no dropout, no DoRA) compute their products in one autograd function.

    Args:
        model: A PEFT model that trains under bfloat16 autocast.

    Returns:
        The number of fused layers.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            layer: Any = module
            layer.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _is_plain(layer: Any) -> bool:
    if len(layer.active_adapters) != 1 or layer.active_adapters[0] not in layer.lora_A:
        return False
    name, base = layer.active_adapters[0], layer.get_base_layer()
    return (
        type(layer).__name__ in ("Linear", "Linear4bit")
        and _in_bfloat16(base)
        and not base.weight.requires_grad
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.lora_B[name].bias is None
    )


def _in_bfloat16(base: Any) -> bool:
    if type(base) is torch.nn.Linear:
        return bool(base.weight.dtype == torch.bfloat16)
    return type(base).__name__ == "Linear4bit" and base.compute_dtype == torch.bfloat16


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if x.dtype != torch.bfloat16 or layer.disable_adapters or layer.merged or args or kwargs:
        unfused: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return unfused
    name, base = layer.active_adapters[0], layer.get_base_layer()
    a, b = layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype)
    product: Callable[..., torch.Tensor] = LoraProduct.apply
    return product(x, base, a, b, layer.scaling[name])
