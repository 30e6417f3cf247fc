"""How far two models' answers to the same rows are apart."""

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
"""Positions per row whose logits are kept for the comparison: 16 rows of a 128k vocabulary take 0.13 GB."""
TOKENS_AT_ONCE = 2048
"""Tokens per batch, padding included: activations of an 8 B model stay under half a GB."""


@dataclass(frozen=True)
class Answers:
    """What a model says at the labelled positions of the rows.

    Attributes:
        loss: Σ nll / Σ tokens, in nats.
        tokens: Labelled positions.
        top: Most likely token at each of them.
        logits: Logits at the first positions of every row, float32 `[positions, vocabulary]`.
        largest: Largest absolute value that a layer took or gave.
    """

    loss: float
    tokens: int
    top: torch.Tensor
    logits: torch.Tensor
    largest: float


@dataclass(frozen=True)
class Parity:
    """How a merged model differs from the adapter on its base.

    Attributes:
        parity_rows: Rows compared.
        parity_tokens: Labelled tokens in them.
        adapter_loss: Loss per labelled token of the adapter on its base in float32, in nats.
        merged_loss: The same for the merged model, read from its files in their own precision.
        loss_difference: Merged minus adapter.
        agreement: Share of the labelled positions where both find the same token most likely.
        max_logit_difference: Largest difference of a logit.
    """

    parity_rows: int
    parity_tokens: int
    adapter_loss: float
    merged_loss: float
    loss_difference: float
    agreement: float
    max_logit_difference: float

    def short(self) -> str:
        """Returns the figures in a few words."""
        return (
            f"loss {self.merged_loss:.4f} against the adapter's {self.adapter_loss:.4f} ({self.loss_difference:+.2g}), "
            f"the same most likely token on {self.agreement:.1%}"
        )


@dataclass(frozen=True)
class Bounds:
    """How far a merged model may be from the adapter.

    Attributes:
        loss_tolerance: Largest difference of the loss, in nats per token.
        min_agreement: Least share of positions with the same most likely token.
    """

    loss_tolerance: float
    min_agreement: float

    def broken_by(self, parity: Parity) -> str:
        """Returns the figures if one is out of bounds or not finite, else nothing."""
        if abs(parity.loss_difference) <= self.loss_tolerance and parity.agreement >= self.min_agreement:
            return ""
        return (
            f"on {parity.parity_rows} validation rows ({parity.parity_tokens} tokens) the adapter has loss "
            f"{parity.adapter_loss:.4f}, the merged model {parity.merged_loss:.4f} (at most {self.loss_tolerance:g} "
            f"apart), and they agree on {parity.agreement:.1%} of the tokens (at least {self.min_agreement:.1%}); "
            f"largest logit difference {parity.max_logit_difference:.3f}"
        )


def parity_rows(ft_result: str | Path) -> Rows:
    """Reads the validation rows that the training left beside its adapter.

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
            f"{ft_result} holds no {ROWS_FILE} with labelled rows, so the merged model could not be compared with the "
            "adapter: give the ft_result of Fine-Tune LoRA"
        )
    return usable


def answers(model: Any, rows: Rows, device: str) -> Answers:
    """Runs the rows through a model, in few batches: each of them may have to read all weights from their files.

    Args:
        model: A causal language model, with or without an adapter.
        rows: `input_ids` and `labels`.
        device: Where it computes.

    Returns:
        Its loss, its most likely tokens, some of its logits and how large its activations become.
    """
    total, top, logits = 0.0, [], []
    with torch.inference_mode(), _watched(model, device) as largest:
        for group in length_grouped_batches([len(row["input_ids"]) for row in rows], TOKENS_AT_ONCE):
            here, targets, owner = completion_logits(model, pad_rows([rows[index] for index in group], device))
            total += float(nn.functional.cross_entropy(here, targets, reduction="none").double().sum())
            top.append(here.argmax(-1).cpu())
            firsts = [(owner == row).nonzero()[:KEPT_PER_ROW, 0] for row in range(len(group))]
            logits.append(here[torch.cat(firsts)].cpu())
    tokens = sum(len(part) for part in top)
    return Answers(total / tokens, tokens, torch.cat(top), torch.cat(logits), float(largest))


@contextmanager
def _watched(model: Any, device: str) -> Iterator[torch.Tensor]:
    """Gives the largest absolute value, so far, of what the model's layers take and give."""
    largest = torch.zeros((), device=device)

    def look(_: nn.Module, taken: tuple[Any, ...], given: Any) -> None:
        for value in (*taken[:1], given[0] if isinstance(given, tuple) and given else given):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                for bound in value.aminmax():
                    torch.maximum(largest, bound.abs().to(largest), out=largest)

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def compare(adapter: Answers, merged: Answers, rows: int) -> Parity:
    """Compares the answers to the same rows.

    Args:
        adapter: Of the adapter on its base.
        merged: Of the merged model.
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
        agreement=float((adapter.top == merged.top).double().mean()),
        max_logit_difference=float((adapter.logits - merged.logits).abs().max()),
    )
