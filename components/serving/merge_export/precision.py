"""Chooses the type that the merged weights are stored in: the narrowest that keeps what was trained."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm_finetune.components.serving.merge_export.parity import Bounds, Parity
from llm_finetune.components.serving.merge_export.weights import OutOfRange
from llm_finetune.components.shared.errors import UserError

NARROW = (torch.bfloat16, torch.float16)
ROOM = 2
"""Activations on the compared rows must leave so much of float16's range to other requests."""
NOT_IN_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")
"""Architectures (model_type) that vLLM refuses to run in float16: their activations leave its range."""


@dataclass(frozen=True)
class Tried:
    """A type that was considered.

    Attributes:
        dtype: Its name.
        refused: Why it was not taken; empty for the one that was.
        parity: The differences as measured; None where the weights were not written.
    """

    dtype: str
    refused: str
    parity: Parity | None

    def __str__(self) -> str:
        """Returns one line for page and console."""
        measured = [self.parity.short()] if self.parity else []
        return ": ".join(["refused" if self.refused else "taken", *(measured or [self.refused])])


def candidates(asked: str, stored: torch.dtype) -> list[torch.dtype]:
    """Returns the types to try, the narrowest first.

    Args:
        asked: The setting: a type, or `auto`.
        stored: Type of the base's weights; of equally narrow ones it comes first, since what the adapter leaves alone
            stays as it is in it.
    """
    if asked != "auto":
        return [getattr(torch, asked)]
    return sorted((*NARROW, torch.float32), key=lambda dtype: (dtype.itemsize, dtype is not stored))


def beyond_float16(largest: float, model_type: str) -> str:
    """Returns why a model can't run in float16, or nothing if it can.

    Args:
        largest: Largest absolute value that a layer took or gave.
        model_type: The architecture, as its config.json says.
    """
    most = torch.finfo(torch.float16).max
    if model_type in NOT_IN_FLOAT16:
        return f"vLLM does not run {model_type} in float16"
    if not largest <= most / ROOM:
        return f"its activations reach {largest:,.0f}, and float16 ends at {most:,.0f}"
    return ""


def narrowest(
    asked: str,
    stored: torch.dtype,
    beyond: str,
    attempt: Callable[[torch.dtype], Parity],
    bounds: Bounds,
) -> list[Tried]:
    """Writes the model in one type after the other until one keeps what was trained.

    Args:
        asked: The setting: a type, or `auto`.
        stored: Type of the base's weights.
        beyond: Why float16 is not to be tried, from `beyond_float16`.
        attempt: Writes the model in a type, in place of an earlier attempt, and measures it.
        bounds: What is kept.

    Returns:
        What was tried; the last one was taken, and its files lie there.

    Raises:
        UserError: If none keeps it.
    """
    tried: list[Tried] = []
    for dtype in candidates(asked, stored):
        refused, parity = beyond if dtype is torch.float16 else "", None
        if not refused:
            try:
                parity = attempt(dtype)
                refused = bounds.broken_by(parity)
            except OutOfRange as error:
                refused = str(error)
        tried.append(Tried(str(dtype).removeprefix("torch."), refused, parity))
        print(f"dtype {tried[-1].dtype} {tried[-1]}", flush=True)
        if not refused:
            return tried
    raise UserError(_none_fits(asked, tried, bounds))


def reason(asked: str, tried: list[Tried]) -> str:
    """Returns why the last one was taken."""
    if asked != "auto":
        return "asked for"
    others = "".join(f"; {one.dtype} {one}" for one in tried[:-1])
    return f"auto: the narrowest type that keeps what was trained{others}"


def _none_fits(asked: str, tried: list[Tried], bounds: Bounds) -> str:
    last, others = tried[-1], "".join(f"; {one.dtype} {one}" for one in tried[:-1])
    if last.dtype == "float32":
        return (
            f"the merged model isn't the one that was trained: {last.refused}, with weights in float32, which rounding "
            f"can't explain{others}. loss_tolerance and min_agreement are the bounds"
        )
    why = (
        f"{last.dtype} rounds away changes of the adapter that are smaller than its steps: {last.refused}"
        if last.parity
        else last.refused
    )
    return (
        f"dtype = {asked!r} does not keep what was trained: {why}. Write into the recipe `merge_export: {{dtype: "
        "float32}`, or leave dtype out: auto takes the narrowest type that keeps it. loss_tolerance "
        f"({bounds.loss_tolerance:g}) and min_agreement ({bounds.min_agreement:g}) are the bounds"
    )
