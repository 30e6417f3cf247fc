"""Chooses the type of the stored weights: the narrowest type that preserves the training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm_finetune.components.serving.merge_export.parity import Parity, Tolerances
from llm_finetune.components.serving.merge_export.weights import OutOfRange
from llm_finetune.components.shared.errors import UserError

NARROW = (torch.bfloat16, torch.float16)
FLOAT16_HEADROOM = 2
"""Factor between the range of float16 and the largest activation on the compared rows, for other requests."""
NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Architectures (model_type) that vLLM does not run in float16, because their activations exceed its range."""


@dataclass(frozen=True)
class Attempt:
    """An attempt to store the weights in a type.

    Attributes:
        dtype: Name of the type.
        rejection: Why the type was rejected; empty if it was accepted.
        parity: The measured differences; None if the weights were not written.
    """

    dtype: str
    rejection: str
    parity: Parity | None

    def __str__(self) -> str:
        """Returns one line for page and log."""
        measured = [self.parity.summary()] if self.parity else []
        return ": ".join(["rejected" if self.rejection else "accepted", *(measured or [self.rejection])])


def candidate_dtypes(requested: str, stored: torch.dtype) -> list[torch.dtype]:
    """Returns the types to try, the narrowest first.

    Args:
        requested: The setting: a type, or `auto`.
        stored: Type of the base's weights. It comes first among types of the same width, because it stores the weights
            without an adapter unchanged.
    """
    if requested != "auto":
        return [getattr(torch, requested)]
    return sorted((*NARROW, torch.float32), key=lambda dtype: (dtype.itemsize, dtype is not stored))


def float16_obstacle(max_activation: float, model_type: str) -> str:
    """Returns why a model cannot run in float16, or an empty string.

    Args:
        max_activation: Largest absolute value of the inputs and outputs of all layers.
        model_type: The architecture in config.json.
    """
    most = torch.finfo(torch.float16).max
    if model_type in NOT_IN_FLOAT16:
        return f"vLLM does not run {model_type} in float16"
    if not max_activation <= most / FLOAT16_HEADROOM:
        return f"its activations reach {max_activation:,.0f}, and the maximum of float16 is {most:,.0f}"
    return ""


def choose_dtype(
    requested: str,
    stored: torch.dtype,
    float16_obstacle: str,
    write: Callable[[torch.dtype], Parity],
    bounds: Tolerances,
) -> list[Attempt]:
    """Writes the model in one type after the other until one preserves the training.

    Args:
        requested: The setting: a type, or `auto`.
        stored: Type of the base's weights.
        float16_obstacle: Why float16 is impossible, from `float16_obstacle`; empty if it is possible.
        write: Writes the model in a type, replacing the previous attempt, and measures the differences.
        bounds: Maximum differences.

    Returns:
        The attempts; the last one was accepted, and its files are in the folder.

    Raises:
        UserError: If no type preserves the training.
    """
    attempts: list[Attempt] = []
    for dtype in candidate_dtypes(requested, stored):
        rejection, parity = float16_obstacle if dtype is torch.float16 else "", None
        if not rejection:
            try:
                parity = write(dtype)
                rejection = bounds.violation(parity)
            except OutOfRange as error:
                rejection = str(error)
        attempts.append(Attempt(str(dtype).removeprefix("torch."), rejection, parity))
        print(f"dtype {attempts[-1].dtype} {attempts[-1]}", flush=True)
        if not rejection:
            return attempts
    raise UserError(_none_fits(requested, attempts, bounds))


def explain(requested: str, attempts: list[Attempt]) -> str:
    """Returns why the type of the last attempt was accepted."""
    if requested != "auto":
        return "requested"
    others = "".join(f"; {one.dtype} {one}" for one in attempts[:-1])
    return f"auto: the narrowest type that preserves the training{others}"


def _none_fits(requested: str, attempts: list[Attempt], bounds: Tolerances) -> str:
    last, others = attempts[-1], "".join(f"; {one.dtype} {one}" for one in attempts[:-1])
    if last.dtype == "float32":
        return (
            f"the merged model differs from the adapter: {last.rejection}, with weights in float32, so rounding is not "
            f"the cause{others}. loss_tolerance and min_agreement are the limits"
        )
    why = (
        f"changes of the adapter are lost in the rounding to {last.dtype}: {last.rejection}"
        if last.parity
        else last.rejection
    )
    return (
        f"dtype = {requested!r} does not preserve the training: {why}. Set `merge_export: {{dtype: float32}}` in the "
        "recipe, or remove dtype: auto chooses the narrowest type that does. loss_tolerance "
        f"({bounds.loss_tolerance:g}) and min_agreement ({bounds.min_agreement:g}) are the limits"
    )
