"""Compares the predictions of two models on the same rows."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX
from llm_finetune.components.shared.modeling.losses import completion_logits, length_grouped_batches, pad_rows

ROWS_FILE = "parity_prompts.json"
Rows = list[dict[str, list[int]]]
KEPT_PER_ROW = 16
"""Positions per row whose logits are compared: 16 rows with a 128k vocabulary need 0.13 GB."""
TOKENS_AT_ONCE = 2048
"""Tokens per batch, padding included: activations of an 8B model need less than 0.5 GB."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model at the labelled positions of the rows.

    Attributes:
        loss: Σ nll / Σ tokens, in nats.
        tokens: Number of labelled positions.
        top_tokens: Most likely token at each of them, `[positions]`.
        logits: Logits at the first positions of each row, float32 `[positions, vocabulary]`.
        max_activation: Largest absolute value of the inputs and outputs of all layers.
    """

    loss: float
    tokens: int
    top_tokens: torch.Tensor
    logits: torch.Tensor
    max_activation: float


@dataclass(frozen=True)
class Parity:
    """Differences between a merged model and the adapter on its base.

    Attributes:
        parity_rows: Number of compared rows.
        parity_tokens: Number of their labelled tokens.
        adapter_loss: Loss per labelled token of the adapter on its base in float32, in nats.
        merged_loss: Loss per labelled token of the merged model as stored, in nats.
        loss_difference: merged_loss - adapter_loss.
        agreement: Fraction of the labelled positions with the same most likely token.
        max_logit_difference: Largest absolute difference of a logit.
    """

    parity_rows: int
    parity_tokens: int
    adapter_loss: float
    merged_loss: float
    loss_difference: float
    agreement: float
    max_logit_difference: float

    def summary(self) -> str:
        """Returns loss and agreement as text."""
        return (
            f"loss {self.merged_loss:.4f} against the adapter's {self.adapter_loss:.4f} ({self.loss_difference:+.2g}), "
            f"the same most likely token on {self.agreement:.1%}"
        )


@dataclass(frozen=True)
class Tolerances:
    """Maximum differences between a merged model and the adapter.

    Attributes:
        loss_tolerance: Maximum absolute difference of the loss, in nats per token.
        min_agreement: Minimum fraction of positions with the same most likely token.
    """

    loss_tolerance: float
    min_agreement: float

    def violation(self, parity: Parity) -> str:
        """Returns a message if a difference exceeds its maximum or is not finite, else an empty string."""
        if abs(parity.loss_difference) <= self.loss_tolerance and parity.agreement >= self.min_agreement:
            return ""
        return (
            f"on {parity.parity_rows} validation rows ({parity.parity_tokens} tokens) the adapter has loss "
            f"{parity.adapter_loss:.4f}, the merged model {parity.merged_loss:.4f} (at most {self.loss_tolerance:g} "
            f"apart), and they agree on {parity.agreement:.1%} of the tokens (at least {self.min_agreement:.1%}); "
            f"largest logit difference {parity.max_logit_difference:.3f}"
        )


def parity_rows(ft_result: str | Path) -> Rows:
    """Reads the validation rows that Fine-Tune LoRA has stored with the adapter.

    Args:
        ft_result: Folder of the adapter.

    Returns:
        Rows with `input_ids` and `labels`.
    """
    path = Path(ft_result) / ROWS_FILE
    rows: Rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    usable = [row for row in rows if any(label != IGNORE_INDEX for label in row["labels"][1:])]
    if not usable:
        raise UserError(
            f"{ft_result} has no {ROWS_FILE} with labelled rows, which the comparison of merged model and adapter "
            "needs: pass the ft_result of Fine-Tune LoRA"
        )
    return usable


def predict(model: Any, rows: Rows, device: str) -> Predictions:
    """Runs a model on the rows, in few batches, because each batch may read all weights from their files.

    Args:
        model: A causal language model, with or without an adapter.
        rows: Rows with `input_ids` and `labels`.
        device: Device of the computation.

    Returns:
        The predictions.
    """
    total, top, logits = 0.0, [], []
    with torch.inference_mode(), _record_max_activation(model, device) as max_activation:
        for group in length_grouped_batches([len(row["input_ids"]) for row in rows], TOKENS_AT_ONCE):
            here, targets, owner = completion_logits(model, pad_rows([rows[index] for index in group], device))
            total += float(nn.functional.cross_entropy(here, targets, reduction="none").double().sum())
            top.append(here.argmax(-1).cpu())
            firsts = [(owner == row).nonzero()[:KEPT_PER_ROW, 0] for row in range(len(group))]
            logits.append(here[torch.cat(firsts)].cpu())
    tokens = sum(len(part) for part in top)
    return Predictions(total / tokens, tokens, torch.cat(top), torch.cat(logits), float(max_activation))


@contextmanager
def _record_max_activation(model: Any, device: str) -> Iterator[torch.Tensor]:
    """Yields a scalar tensor with the largest absolute value of the inputs and outputs of all layers so far."""
    largest = torch.zeros((), device=device)

    def update(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        for value in (*inputs[:1], output[0] if isinstance(output, tuple) and output else output):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                for bound in value.aminmax():
                    torch.maximum(largest, bound.abs().to(largest), out=largest)

    hooks = [module.register_forward_hook(update) for module in model.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def compare(adapter: Predictions, merged: Predictions, rows: int) -> Parity:
    """Compares predictions on the same rows.

    Args:
        adapter: Predictions of the adapter on its base.
        merged: Predictions of the merged model.
        rows: Number of rows.

    Returns:
        The differences.
    """
    return Parity(
        parity_rows=rows,
        parity_tokens=adapter.tokens,
        adapter_loss=adapter.loss,
        merged_loss=merged.loss,
        loss_difference=merged.loss - adapter.loss,
        agreement=float((adapter.top_tokens == merged.top_tokens).double().mean()),
        max_logit_difference=float((adapter.logits - merged.logits).abs().max()),
    )
