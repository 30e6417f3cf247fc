"""The tuned model: an adapter on its base, and that base as it is without the adapter."""

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


def with_adapter(base: Any, ft_result: str | Path) -> Any:
    """Puts an adapter on its base; both then answer as the adapter is served, with none of the base's penalties.

    Args:
        base: The base model; it is changed.
        ft_result: Folder of the adapter.

    Returns:
        The PEFT model.

    Raises:
        UserError: If the adapter is damaged or does not fit.
    """
    weights = _copy(base) if _changes_base(Path(ft_result)) else {}
    try:
        model: Any = PeftModel.from_pretrained(base, str(ft_result))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the adapter in {ft_result} does not fit the base model: {str(error).strip()}") from error
    for name, parameter in _own_parameters(model):
        if name in weights and torch.equal(weights[name], parameter.data.cpu()):
            del weights[name]
    model.base_weights = weights
    base.generation_config = GenerationConfig.from_pretrained(ft_result)
    return model


def adapted(model: Any, tuned: bool) -> AbstractContextManager[None]:
    """Runs a PEFT model with its adapter, or as the base model without it."""
    return nullcontext() if tuned else _as_base(model)


@contextmanager
def _as_base(model: Any) -> Iterator[None]:
    with model.disable_adapter():
        _exchange(model)
        try:
            yield
        finally:
            _exchange(model)


def _exchange(model: Any) -> None:
    """Puts the weights that were changed for the adapter in the place of those that it needs, or back."""
    weights = model.base_weights
    for name, parameter in _own_parameters(model) if weights else ():
        if name in weights:
            other, weights[name] = weights[name], parameter.data.cpu()
            parameter.data = other.to(parameter.device)


def _changes_base(ft_result: Path) -> bool:
    """Tells whether PEFT takes the adapter's initial values out of the base's weights."""
    config = json.loads((ft_result / "adapter_config.json").read_text(encoding="utf-8"))
    return changes_base(config)


def _copy(base: Any) -> dict[str, torch.Tensor]:
    """Returns the weights outside the GPU's memory, which has no room for them twice."""
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in base.named_parameters()}


def _own_parameters(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Returns the parameters by the names that they have without an adapter."""
    for name, parameter in unwrap_peft(model).named_parameters():
        yield name.replace(".base_layer.", "."), parameter
