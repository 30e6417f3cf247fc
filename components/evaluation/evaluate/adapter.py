"""The tuned model as an adapter on its base, and the base model with its original weights."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import GenerationConfig

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.adapters import changes_base
from llm_finetune.components.shared.modeling.losses import unwrap_peft


def load_adapter(base: Any, ft_result: str | Path) -> Any:
    """Loads an adapter onto its base.

    Base and tuned model then generate with the adapter's generation config, without penalties of the base's own one.

    Args:
        base: The base model; modified in place.
        ft_result: Folder of the adapter.

    Returns:
        The PEFT model.

    Raises:
        UserError: If the adapter is damaged or does not fit.
    """
    weights = _copy_weights(base) if _changes_base(Path(ft_result)) else {}
    try:
        model: Any = PeftModel.from_pretrained(base, str(ft_result))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the adapter in {ft_result} does not fit the base model: {str(error).strip()}") from error
    for name, parameter in _base_parameters(model):
        if name in weights and torch.equal(weights[name], parameter.data.cpu()):
            del weights[name]
    model.base_weights = weights
    base.generation_config = GenerationConfig.from_pretrained(ft_result)
    return model


def use_adapter(model: Any, enabled: bool) -> AbstractContextManager[None]:
    """Runs a PEFT model with its adapter enabled, or as the original base model."""
    return nullcontext() if enabled else _as_base(model)


@contextmanager
def _as_base(model: Any) -> Iterator[None]:
    with model.disable_adapter():
        _swap_weights(model)
        try:
            yield
        finally:
            _swap_weights(model)


def _swap_weights(model: Any) -> None:
    """Exchanges the weights that PEFT changed for the adapter with their original values, or back."""
    weights = model.base_weights
    for name, parameter in _base_parameters(model) if weights else ():
        if name in weights:
            other, weights[name] = weights[name], parameter.data.cpu()
            parameter.data = other.to(parameter.device)


def _changes_base(ft_result: Path) -> bool:
    """Returns whether PEFT subtracts the adapter's initial values from the base's weights."""
    config = json.loads((ft_result / "adapter_config.json").read_text(encoding="utf-8"))
    return changes_base(config)


def _copy_weights(base: Any) -> dict[str, torch.Tensor]:
    """Copies the weights to the CPU, because GPU memory may not hold them twice."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in base.named_parameters()}


def _base_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yields the parameters under their names in the base model."""
    for name, parameter in unwrap_peft(model).named_parameters():
        yield name.replace(".base_layer.", "."), parameter
