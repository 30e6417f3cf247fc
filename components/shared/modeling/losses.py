"""Loss of completions: summed over their tokens, never averaged twice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

IGNORED = -100
LOGITS_AT_ONCE = 1 << 27
"""Logits in memory at a time, 512 MiB in float32."""


def unwrapped(model: Any) -> Any:
    """Returns the causal language model inside a PEFT model, its adapter layers in place; or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def has_plain_head(model: Any) -> bool:
    """Tells whether logits are the output embedding of the last hidden state and nothing more.

    Gemma caps its logits, Granite and Cohere scale them: there, only the model's own forward knows the loss.
    """
    config = unwrapped(model).config.get_text_config()
    changed = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
    return not any(getattr(config, name, None) not in (None, 1, 1.0) for name in changed)


def completion_nll(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns each row's summed negative log-likelihood of its labelled tokens.

    Without gradients only some positions' logits are in memory at a time: 8,192 tokens of a vocabulary of 128,000
    would be 4 GiB.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batch: `input_ids`, `attention_mask` and `labels`, each `[rows, tokens]`, labels -100 where nothing counts.

    Returns:
        Summed negative log-likelihood in nats, float32 `[rows]`, and number of labelled tokens, int64 `[rows]`.
    """
    head, inputs, targets, rows = _before_head(model, batch)
    width = unwrapped(model).config.get_text_config().vocab_size
    at_once = len(inputs) if torch.is_grad_enabled() else LOGITS_AT_ONCE // width
    parts = zip(*(tensor.split(max(at_once, 1)) for tensor in (inputs, targets)), strict=True)
    nll = torch.cat([nn.functional.cross_entropy(head(x).float(), y, reduction="none") for x, y in parts])
    count = len(batch["labels"])
    sums = torch.zeros(count, device=nll.device, dtype=nll.dtype).index_add(0, rows, nll)
    return sums, torch.bincount(rows, minlength=count)


def completion_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the logits that predict the labelled tokens.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batch: `input_ids`, `attention_mask` and `labels`, each `[rows, tokens]`, labels -100 where nothing counts.

    Returns:
        Logits, float32 `[labelled, vocabulary]`; the tokens they should predict, int64 `[labelled]`; the row that each
        belongs to, int64 `[labelled]`, ascending.
    """
    head, inputs, targets, rows = _before_head(model, batch)
    return head(inputs).float(), targets, rows


def _before_head(
    model: Any, batch: dict[str, torch.Tensor]
) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what makes logits, what to give it for each labelled token, those tokens, and their rows.

    Only positions that carry a label are projected to the vocabulary, where the head is plain: prompts and padding cost
    no logits.
    """
    causal = unwrapped(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    rows = counted.nonzero()[:, 0]
    if has_plain_head(model):
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        return causal.get_output_embeddings(), hidden[counted], targets[counted], rows
    logits = causal(**inputs, use_cache=False).logits[:, :-1]
    return lambda chosen: chosen, logits[counted], targets[counted], rows


def padded(rows: Sequence[Mapping[str, Any]], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Pads token rows on the right into one batch; padding is masked by position, whatever its id.

    Args:
        rows: `input_ids` and `labels` per row.
        device: Where the tensors go.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each `[rows, longest]`.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def grid(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[fill] * (longest - len(row[name]))] for row in rows], device=device)

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": grid("input_ids", 0),
        "attention_mask": torch.tensor(mask, device=device),
        "labels": grid("labels", IGNORED),
    }


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Groups rows of like length into batches of a bounded number of tokens, padding included.

    Args:
        lengths: Tokens per row.
        tokens: Most tokens in a batch; a longer row gets a batch of its own.

    Yields:
        Row indices of each batch, longest rows first, so that a batch too large for memory fails at once.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and lengths[group[0]] * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
