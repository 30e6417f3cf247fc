"""Loss of the base and the tuned model per row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_finetune.components.evaluation.evaluate.adapter import use_adapter
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.rows import Indices, TokenRow, read_windows
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.losses import completion_nll, pad_rows
from llm_finetune.components.shared.progress import Progress

MODELS = ("base", "tuned")


@dataclass(frozen=True)
class Losses:
    """Measured losses, one value per row.

    Attributes:
        rows: Index in `val_sft`, int64.
        lengths: Tokens of the row, int64.
        tokens: Completion tokens of the row, int64.
        nll: Negative log-likelihood in nats, summed over the completion tokens, float64, for `base` and `tuned`.
    """

    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tokens: NDArray[np.int64]
    nll: dict[str, NDArray[np.float64]]

    @property
    def delta(self) -> NDArray[np.float64]:
        """Tuned minus base, per row."""
        return np.subtract(self.nll["tuned"], self.nll["base"])


def measure(model: Any, val_tokens: Path, positions: Indices, budget: TokenBudget) -> Losses:
    """Measures the loss with and without the adapter, one window of rows at a time.

    Args:
        model: PEFT model in evaluation mode.
        val_tokens: Folder of the validation rows.
        positions: Positions of the rows to measure, ascending.
        budget: Limits the batches.

    Returns:
        The losses, in the order of `positions`.

    Raises:
        UserError: If a loss is not finite, or no row has a completion token.
    """
    progress = Progress("loss of base and tuned model", len(positions), "rows")
    parts = []
    for window in read_windows(val_tokens, positions):
        parts.append(_measure_window(model, window, budget))
        progress.update(sum(len(part.rows) for part in parts))
    losses = Losses(
        rows=np.concatenate([part.rows for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        nll={name: np.concatenate([part.nll[name] for part in parts]) for name in MODELS},
    )
    if not losses.tokens.sum():
        raise UserError(f"none of the {len(positions)} validation rows in {val_tokens} has a completion token")
    return losses


def _measure_window(model: Any, window: list[TokenRow], budget: TokenBudget) -> Losses:
    lengths = [len(row["input_ids"]) for row in window]
    tokens = np.zeros(len(window), np.int64)
    nll = {name: np.zeros(len(window)) for name in MODELS}

    def measure_batch(batch: list[int], name: str) -> None:
        sums, counts = completion_nll(model, pad_rows([window[i] for i in batch], model.device))
        nll[name][batch] = sums.double().cpu().numpy()
        tokens[batch] = counts.cpu().numpy()

    for name in MODELS:
        with use_adapter(model, enabled=name == "tuned"):
            budget.run("loss", lengths, partial(measure_batch, name=name))
        _require_finite(nll[name], window, name)
    rows = np.array([row["row"] for row in window], dtype=np.int64)
    return Losses(rows, np.array(lengths, dtype=np.int64), tokens, nll)


def _require_finite(sums: NDArray[np.float64], window: list[TokenRow], name: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(sums))
    if len(wrong):
        raise UserError(
            f"the {name} model's loss is not finite ({sums[wrong[0]]}) on validation row {window[wrong[0]]['row']} and "
            f"{len(wrong) - 1} others of {len(window)}: "
            + ("the adapter diverged; lower learning_rate" if name == "tuned" else "check the base model's precision")
        )


def length_buckets(lengths: Indices) -> list[str]:
    """Returns the length bucket of each row. Bounds are powers of two, so that runs can be compared.

    Args:
        lengths: Tokens per row, at least 1.

    Returns:
        Names such as `65-128 tokens`; the first bucket is `1-64 tokens`.
    """
    return [f"{bound // 2 + 1 if bound > 64 else 1}-{bound} tokens" for bound in _upper_bounds(lengths)]


def _upper_bounds(lengths: Indices) -> Iterator[int]:
    for length in lengths.tolist():
        yield max(64, 1 << (length - 1).bit_length())
