"""The loss of completions: a sum over labelled tokens, so that batch size and padding do not change it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from llm_finetune.components.shared.modeling.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from peft import PeftModel

MAX_LOGITS = 1 << 27
"""Logits that are in memory at once without gradients: 512 MiB in float32."""

CausalLM: TypeAlias = "PreTrainedModel | PeftModel"
"""A causal language model, with or without a PEFT adapter."""


def unwrap_peft(model: CausalLM) -> PreTrainedModel:
    """Returns the causal language model inside a PEFT model, with its adapter layers; or the model itself."""
    inner: Any = model
    return cast(PreTrainedModel, inner.get_base_model() if hasattr(inner, "get_base_model") else inner)


def has_plain_head(config: PretrainedConfig) -> bool:
    """Returns whether logits are the output embedding of the last hidden state, without capping or scaling.

    Gemma caps its logits; Granite and Cohere scale them. Only the forward pass of the whole model computes their loss.

    Args:
        config: The model's configuration.
    """
    text = config.get_text_config()
    changed = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
    return not any(getattr(text, name, None) not in (None, 1, 1.0) for name in changed)


def completion_nll(model: CausalLM, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns each row's summed negative log-likelihood of its labelled tokens.

    Without gradients the logits are computed in parts: those of 8,192 tokens over a vocabulary of 128,000 would take
    4 GiB.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batch: `input_ids`, `attention_mask` and `labels`, each `[rows, tokens]`; labels are -100 where no loss counts.

    Returns:
        Summed negative log-likelihood in nats, float32 `[rows]`, and number of labelled tokens, int64 `[rows]`.
    """
    head, inputs, targets, rows = _labelled_positions(model, batch)
    vocabulary = unwrap_peft(model).config.get_text_config().vocab_size
    at_once = max(len(inputs) if torch.is_grad_enabled() else MAX_LOGITS // vocabulary, 1)
    parts = zip(torch.split(inputs, at_once), torch.split(targets, at_once), strict=True)
    nll = torch.cat([nn.functional.cross_entropy(head(x).float(), y, reduction="none") for x, y in parts])
    count = len(batch["labels"])
    sums = torch.zeros(count, device=nll.device, dtype=nll.dtype).index_add(0, rows, nll)
    return sums, torch.bincount(rows, minlength=count)


def completion_logits(model: CausalLM, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the logits that predict the labelled tokens.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        batch: `input_ids`, `attention_mask` and `labels`, each `[rows, tokens]`; labels are -100 where no loss counts.

    Returns:
        Logits, float32 `[labelled, vocabulary]`; the tokens that they should predict, int64 `[labelled]`; the row of
        each token, int64 `[labelled]`, ascending.
    """
    head, inputs, targets, rows = _labelled_positions(model, batch)
    return head(inputs).float(), targets, rows


def _labelled_positions(
    model: CausalLM, batch: Mapping[str, Tensor]
) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """Returns a function that computes logits, its input for each labelled token, these tokens, and their rows.

    Where the head is plain, only labelled positions are projected to the vocabulary; prompts and padding are not.
    """
    causal = unwrap_peft(model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE_INDEX
    rows = labelled.nonzero()[:, 0]
    if has_plain_head(causal.config):
        hidden = causal.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        return causal.get_output_embeddings(), hidden[labelled], targets[labelled], rows
    logits = causal(**inputs, use_cache=False).logits[:, :-1]
    return lambda chosen: chosen, logits[labelled], targets[labelled], rows


def pad_rows(rows: Sequence[Mapping[str, Any]], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pads token rows on the right into one batch; padding is masked by position, whatever its id.

    Args:
        rows: `input_ids` and `labels` per row.
        device: Device of the tensors.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each `[rows, longest]`.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def pad(name: str, fill: int) -> Tensor:
        return torch.tensor([[*row[name], *[fill] * (longest - len(row[name]))] for row in rows], device=device)

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": pad("input_ids", 0),
        "attention_mask": torch.tensor(mask, device=device),
        "labels": pad("labels", IGNORE_INDEX),
    }


def length_grouped_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Groups rows of similar length into batches with a limited number of tokens, padding included.

    Args:
        lengths: Tokens per row.
        max_tokens: Maximum number of tokens in a batch; a longer row gets a batch of its own.

    Yields:
        Row indices of each batch, longest rows first, so that a batch too large for memory fails at once.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
