"""Generates answers to validation prompts with transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.shared.progress import Progress


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: The answer without special tokens.
        tokens: Number of generated tokens, end-of-turn token included.
        stopped: Whether the answer ends with an end-of-turn token.
    """

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Decoding:
    """Decoding parameters.

    Attributes:
        max_new_tokens: Maximum number of tokens of an answer.
        stop_token_ids: Token ids that end a turn.
        temperature: Sampling temperature; 0 for greedy decoding.
        top_p: Cumulative probability of the tokens that are sampled from.
        seed: Random seed.
    """

    max_new_tokens: int
    stop_token_ids: list[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def generate_arguments(self) -> dict[str, bool | int | float]:
        """Returns the arguments of `generate`."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}

    def vllm_arguments(self) -> dict[str, bool | int | float | list[int]]:
        """Returns the arguments of `vllm.SamplingParams`, without the seed; only `stop_token_ids` end an answer."""
        return {
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": self.stop_token_ids,
            "ignore_eos": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "detokenize": False,
        }


@dataclass(frozen=True)
class GenerationRequest:
    """What one candidate generates.

    Attributes:
        prompts: The prompts.
        decoding: Decoding parameters.
        tuned: Whether the adapter is enabled.
    """

    prompts: list[Prompt]
    decoding: Decoding
    tuned: bool


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], decoding: Decoding, budget: TokenBudget, label: str
) -> list[Answer]:
    """Generates answers in left-padded batches of prompts of similar length.

    Args:
        model: The causal language model, in evaluation mode.
        tokenizer: Decodes the answers; the model has an embedding for its padding token (`ensure_padding`).
        prompts: The prompts.
        decoding: Decoding parameters.
        budget: Limits the batches; a prompt counts with its tokens and `max_new_tokens`.
        label: Label of the progress lines.

    Returns:
        One answer per prompt, in the order of the prompts.
    """
    pad = tokenizer.pad_token_id
    answers: dict[int, Answer] = {}
    progress = Progress(label, len(prompts), "prompts")

    def answer_batch(batch: list[int]) -> None:
        ids, mask = _pad_left([prompts[i].input_ids for i in batch], pad)
        generated = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=decoding.stop_token_ids,
            pad_token_id=pad,
            **decoding.generate_arguments(),
        )[:, ids.shape[1] :].tolist()
        for i, tokens in zip(batch, generated, strict=True):
            answers[i] = decode_answer(tokens, decoding.stop_token_ids, tokenizer)
        progress.update(len(answers))

    torch.manual_seed(decoding.seed)
    budget.run(label, [len(prompt.input_ids) + decoding.max_new_tokens for prompt in prompts], answer_batch)
    return [answers[i] for i in range(len(prompts))]


def _pad_left(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    return torch.tensor(ids), torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])


def decode_answer(tokens: list[int], stop_token_ids: list[int], tokenizer: Any) -> Answer:
    """Decodes generated tokens up to the first stop token.

    Args:
        tokens: Generated token ids.
        stop_token_ids: Token ids that end a turn.
        tokenizer: Decodes the tokens.
    """
    end = next((i for i, token in enumerate(tokens) if token in stop_token_ids), None)
    own = tokens if end is None else tokens[: end + 1]
    return Answer(tokenizer.decode(own, skip_special_tokens=True), len(own), end is not None)


def prepend_examples(prompts: Sequence[Prompt], examples: list[list[int]], bos: int | None) -> list[Prompt]:
    """Puts few-shot examples before every prompt: training documents with their end-of-turn tokens.

    The result is a conversation of several turns with one beginning-of-sequence (BOS) token::

        bos example 1 end · example 2 end · … · prompt

    Args:
        prompts: The prompts.
        examples: Token ids per example.
        bos: Id of the BOS token, if the tokenizer has one.

    Returns:
        The longer prompts.
    """
    # A token that also opens every turn (ChatML) is kept at each of them.
    has_bos = bos is not None and all(example[0] == bos and example.count(bos) == 1 for example in examples)

    def without_bos(ids: list[int]) -> list[int]:
        return ids[1:] if has_bos and ids[:1] == [bos] else ids

    prefix = examples[0] + [token for example in examples[1:] for token in without_bos(example)]
    return [Prompt(prompt.row, prefix + without_bos(prompt.input_ids), prompt.reference) for prompt in prompts]
