"""Losses of the base and the tuned model, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_finetune.components.evaluation.evaluate.adapter import adapted
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.rows import windows
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.losses import completion_nll, pad_rows
from llm_finetune.components.shared.progress import Progress

MODELS = ("base", "tuned")


@dataclass(frozen=True)
class Losses:
    """What was measured, one value per row.

    Attributes:
        rows: Index in the validation split, int64.
        lengths: Tokens of the row, int64.
        tokens: Completion tokens of the row, int64.
        nll: Summed negative log-likelihood of them in nats, float64, for `base` and `tuned`.
    """

    rows: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    nll: dict[str, np.ndarray]

    @property
    def delta(self) -> np.ndarray:
        """Tuned minus base, per row."""
        return self.nll["tuned"] - self.nll["base"]


def measure(model: Any, val_tokens: Path, chosen: np.ndarray, budget: TokenBudget) -> Losses:
    """Measures rows with and without the adapter.

    A few numbers are kept per row, and one window of rows at a time.

    Args:
        model: PEFT model in evaluation mode.
        val_tokens: Folder of the validation rows.
        chosen: Positions of the rows to measure, ascending.
        budget: Bounds the batches.

    Returns:
        The losses, in the order of `chosen`.

    Raises:
        UserError: If a loss is not finite, or no row has a completion token.
    """
    progress = Progress("loss of base and tuned model", len(chosen), "rows")
    parts = []
    for window in windows(val_tokens, chosen):
        parts.append(_measure_window(model, window, budget))
        progress.update(sum(len(part.rows) for part in parts))
    losses = Losses(
        rows=np.concatenate([part.rows for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        nll={name: np.concatenate([part.nll[name] for part in parts]) for name in MODELS},
    )
    if not losses.tokens.sum():
        raise UserError(f"none of the {len(chosen)} validation rows in {val_tokens} has a completion token")
    return losses


def _measure_window(model: Any, window: list[dict[str, Any]], budget: TokenBudget) -> Losses:
    lengths = [len(row["input_ids"]) for row in window]
    tokens = np.zeros(len(window), np.int64)
    nll = {name: np.zeros(len(window)) for name in MODELS}

    def work(group: list[int], name: str) -> None:
        sums, counted = completion_nll(model, pad_rows([window[i] for i in group], model.device))
        nll[name][group] = sums.double().cpu().numpy()
        tokens[group] = counted.cpu().numpy()

    for name in MODELS:
        with adapted(model, tuned=name == "tuned"):
            budget.run("loss", lengths, lambda group, name=name: work(group, name))  # type: ignore[misc]
        _require_finite(nll[name], window, name)
    rows = np.array([row["row"] for row in window], dtype=np.int64)
    return Losses(rows, np.array(lengths, dtype=np.int64), tokens, nll)


def _require_finite(sums: np.ndarray, window: list[dict[str, Any]], name: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(sums))
    if len(wrong):
        raise UserError(
            f"the {name} model's loss is not finite ({sums[wrong[0]]}) on validation row {window[wrong[0]]['row']} and "
            f"{len(wrong) - 1} others of {len(window)}: "
            + ("the adapter diverged; lower learning_rate" if name == "tuned" else "check the base model's precision")
        )


def length_buckets(lengths: np.ndarray) -> list[str]:
    """Names the slice of each row by its length: powers of two, so that runs can be compared.

    Args:
        lengths: Tokens per row, at least 1.

    Returns:
        Names such as `65-128 tokens`; up to 64 is one.
    """
    return [f"{bucket // 2 + 1 if bucket > 64 else 1}-{bucket} tokens" for bucket in _ceilings(lengths)]


def _ceilings(lengths: np.ndarray) -> Iterator[int]:
    for length in lengths.tolist():
        yield max(64, 1 << (length - 1).bit_length())
