"""What a model's attention can do, known from its class and its configuration before a weight is loaded."""

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

# Kinds of layers in which a token learns of earlier ones through attention alone, or not at all; convolutions, linear
# attention and recurrent layers carry a state over the end of a document into the next.
STATELESS = {"attention", "minimax_m3_sparse", "moe", "mlp", "sparse", "dense"}


def attention_of(config: PretrainedConfig, wanted: str = "sdpa") -> str:
    """Returns the attention function of transformers to load a model with.

    Args:
        config: The model's configuration.
        wanted: The function that would be best.

    Returns:
        The wanted one where the model computes the same with it, else `sdpa`, else `eager`.
    """
    if wanted == "eager" or _only_eager(config):
        return "eager"
    return wanted if wanted == "sdpa" or _model_class(config)._supports_attention_backend else "sdpa"


def mixing_obstacle(config: PretrainedConfig) -> str:
    """Says why documents that share a row would see each other.

    Args:
        config: The model's configuration.

    Returns:
        The reason, or an empty string when attention keeps them apart by their positions.
    """
    name, model = config.model_type, _model_class(config)
    if model._is_stateful or any(map(_is_stateful, layer_types(config))):
        return f"{name} has layers that are not attention and carry a state from one document into the next"
    if not model._supports_attention_backend:
        return f"{name} makes its own attention mask, which does not keep documents apart"
    return ""


def layer_types(config: PretrainedConfig) -> set[str]:
    """Returns the kinds of layers that a model has, as its configuration names them; none where it does not."""
    text = config.get_text_config()
    named = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    return set(named or ())


def _only_eager(config: PretrainedConfig) -> bool:
    """Tells whether only the plain function computes what the model means: others leave out what they do not know."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None)) or not (
        _model_class(config)._supports_sdpa
    )


def _is_stateful(layer_type: str) -> bool:
    attends = layer_type.endswith("_attention") and layer_type != "linear_attention"
    return not attends and layer_type not in STATELESS


def _model_class(config: PretrainedConfig) -> Any:
    """Returns the class that transformers loads; its base class, which supports nothing, where there is not one."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found if isinstance(found, type) else PreTrainedModel
