"""Runs a model with its weights on disk: each layer's weights are read when it runs."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from llm_finetune.components.serving.merge_export.weights import StoredWeights
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.attention import attention_implementation
from llm_finetune.components.shared.modeling.causal_lm import nf4_config
from llm_finetune.components.shared.modeling.losses import unwrap_peft

# Initializations that PEFT computes from the base weights, which are not in memory here.
INITS_FROM_BASE = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga")


def empty_model(folder: str | Path, dtype: torch.dtype) -> Any:
    """Builds a model without weights, in evaluation mode.

    Args:
        folder: Folder with its config.json.
        dtype: Type of the computation.

    Returns:
        The model, with parameters on the meta device and buffers in memory.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, trust_remote_code=False, dtype=dtype, attn_implementation=attention_implementation(config)
        )
    model.tie_weights()
    return model.eval()


def obstacle(base: Any, stored: StoredWeights, ft_result: str | Path) -> str:
    """Returns why a model cannot be merged from its files, or an empty string.

    Args:
        base: Model from `empty_model`.
        stored: Its weights.
        ft_result: Folder of the adapter.
    """
    weights = set(_tied(base)) | set(stored)
    missing = next((name for name, _ in base.named_parameters() if name not in weights), "")
    if missing:
        return f"the files of {type(base).__name__} have another name for {missing}"
    computed = set(dict(base.named_buffers())) & set(base.state_dict())
    if computed:
        return f"{type(base).__name__} stores {min(computed)}, which is not a parameter"
    init = json.loads((Path(ft_result) / "adapter_config.json").read_text(encoding="utf-8")).get("init_lora_weights")
    if isinstance(init, str) and init.startswith(INITS_FROM_BASE):
        return f"the initial values of the adapter ({init}) are computed from the weights of the base"
    return ""


def quantized_names(base: Any) -> list[str]:
    """Returns the names of the weights that 4-bit training quantizes: all linear layers except the head."""
    with init_empty_weights():
        copy = type(base)(base.config)
    skipped = get_keys_to_not_convert(copy)
    replaced = replace_with_bnb_linear(copy, modules_to_not_convert=skipped, quantization_config=nf4_config())
    return [f"{name}.weight" for name, module in replaced.named_modules() if type(module).__name__ == "Linear4bit"]


def with_adapter(base: Any, ft_result: str | Path) -> Any:
    """Loads an adapter in float32 onto a model without weights.

    Raises:
        UserError: If the adapter does not match the model.
    """
    try:
        with _adapter_in_memory():
            return PeftModel.from_pretrained(base, str(ft_result), low_cpu_mem_usage=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the adapter in {ft_result} does not match the base model: {str(error).strip()}") from error


def stream_weights(model: Any, stored: StoredWeights, device: str) -> Any:
    """Adds hooks that load the weights of each layer before it runs and release them afterwards.

    Args:
        model: Model from `empty_model` or `with_adapter`; modified in place.
        stored: The weights.
        device: Device of the computation.

    Returns:
        The same model.
    """
    layers = {type(module).__name__ for module in model.modules() if isinstance(module, LoraLayer)}
    attach_align_device_hook(
        unwrap_peft(model),
        execution_device=torch.device(device),
        offload=True,
        weights_map=_WeightsMap(unwrap_peft(model), stored),
        preload_module_classes=sorted(layers),  # DoRA reads the weight of its base layer without running the layer
    )
    return model


@contextlib.contextmanager
def _adapter_in_memory() -> Iterator[None]:
    """Prevents PEFT from moving the adapter to the device of the base weights, the meta device."""
    name = "_move_adapter_to_device_of_base_layer"
    move = getattr(BaseTunerLayer, name)
    setattr(BaseTunerLayer, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(BaseTunerLayer, name, move)


class _WeightsMap(Mapping[str, torch.Tensor]):
    """Parameters of a model by name: of the adapter from memory, of the base from their files."""

    def __init__(self, model: Any, stored: StoredWeights) -> None:
        """Sets the model and the weights of its base."""
        self.stored, self.tied = stored, _tied(model)
        parameters = model.named_parameters(remove_duplicate=False)
        self.own = {name: parameter.data for name, parameter in parameters if not parameter.is_meta}

    def __getitem__(self, name: str) -> torch.Tensor:
        """Returns a parameter."""
        if name in self.own:
            return self.own[name]
        name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        return self.stored[self.tied.get(name, name) if name not in self.stored else name]

    def __iter__(self) -> Iterator[str]:
        """Returns the names."""
        return iter([*self.own, *self.stored])

    def __len__(self) -> int:
        """Returns the number of parameters."""
        return len(self.own) + len(self.stored)


def _tied(model: Any) -> dict[str, str]:
    """Returns the names of tied parameters with the name of the stored parameter."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not model.config.get_text_config().tie_word_embeddings:
        return {}
    names = {id(module): name for name, module in model.named_modules()}
    return {f"{names[id(head)]}.weight": f"{names[id(embedding)]}.weight"}
