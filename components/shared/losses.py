"""Loss of completions: summed over their tokens, never averaged twice."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

IGNORED = -100


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

    Only positions that carry a label are projected to the vocabulary, where the head is plain: prompts and padding cost
    no logits.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batch: `input_ids`, `attention_mask` and `labels`, each `[rows, tokens]`, labels -100 where nothing counts.

    Returns:
        Summed negative log-likelihood in nats, float32 `[rows]`, and number of labelled tokens, int64 `[rows]`.
    """
    causal = unwrapped(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    if has_plain_head(model):
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        logits = causal.get_output_embeddings()(hidden[counted])
    else:
        logits = causal(**inputs, use_cache=False).logits[:, :-1][counted]
    nll = nn.functional.cross_entropy(logits.float(), targets[counted], reduction="none")
    rows = counted.nonzero()[:, 0]
    sums = torch.zeros(targets.shape[0], device=nll.device, dtype=nll.dtype).index_add(0, rows, nll)
    return sums, counted.sum(1)


def padded(rows: Sequence[dict[str, Any]], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
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
