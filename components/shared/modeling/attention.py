"""Attention functions that a model supports, known from its class and configuration before weights are loaded."""

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

# Layer types without a state that continues across document boundaries in a packed row. Convolutions, linear attention
# and recurrent layers have such a state.
STATELESS_LAYER_TYPES = {"attention", "minimax_m3_sparse", "moe", "mlp", "sparse", "dense"}


def attention_implementation(config: PretrainedConfig, preferred: str = "sdpa") -> str:
    """Returns the `attn_implementation` to load a model with.

    Args:
        config: The model's configuration.
        preferred: The implementation to use where the model supports it.

    Returns:
        The preferred one where the model computes the same with it, else `sdpa`, else `eager`.
    """
    if preferred == "eager" or _requires_eager(config):
        return "eager"
    return preferred if preferred == "sdpa" or _model_class(config)._supports_attention_backend else "sdpa"


def packing_obstacle(config: PretrainedConfig) -> str:
    """Returns why documents packed into one row would influence each other; empty if position ids separate them.

    Args:
        config: The model's configuration.
    """
    name, model = config.model_type, _model_class(config)
    if model._is_stateful or any(map(_is_stateful, layer_types(config))):
        return f"{name} has layers that are not attention and carry a state from one document into the next"
    if not model._supports_attention_backend:
        return f"{name} makes its own attention mask, which does not keep documents apart"
    return ""


def layer_types(config: PretrainedConfig) -> set[str]:
    """Returns the layer types that a model's configuration names; empty if it names none."""
    text = config.get_text_config()
    named = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    return set(named or ())


def _requires_eager(config: PretrainedConfig) -> bool:
    """Returns whether only eager attention is exact; the other functions ignore the capping of attention logits."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None)) or not (
        _model_class(config)._supports_sdpa
    )


def _is_stateful(layer_type: str) -> bool:
    is_attention = layer_type.endswith("_attention") and layer_type != "linear_attention"
    return not is_attention and layer_type not in STATELESS_LAYER_TYPES


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Returns the class that transformers loads; without one, its base class, which supports no attention backend."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found if isinstance(found, type) else PreTrainedModel
