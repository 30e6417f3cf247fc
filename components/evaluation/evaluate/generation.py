"""Answers of a model to held-out prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.rows import Prompt
from llm_finetune.components.shared.progress import Progress


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: The answer without special tokens.
        tokens: Number of tokens written, the end of turn included.
        stopped: Whether the model ended the turn itself.
    """

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Most tokens of an answer.
        ends: Token ids that end a turn.
        temperature: 0 takes the most likely token.
        top_p: Share of the probability that tokens are drawn from.
        seed: Seed of the draws.
    """

    max_new_tokens: int
    ends: list[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 42

    def options(self) -> dict[str, Any]:
        """Returns the arguments for `generate`."""
        if not self.temperature:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}

    def vllm_options(self) -> dict[str, Any]:
        """Returns the same as arguments of `vllm.SamplingParams`, the seed apart; only `ends` end an answer."""
        return {
            "max_tokens": self.max_new_tokens,
            "stop_token_ids": self.ends,
            "ignore_eos": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "detokenize": False,
        }


@dataclass(frozen=True)
class Assignment:
    """What a contender is to answer.

    Attributes:
        prompts: The prompts.
        decoding: How its answers are drawn.
        tuned: Whether the adapter answers, or the base without it.
    """

    prompts: list[Prompt]
    decoding: Decoding
    tuned: bool


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], decoding: Decoding, budget: TokenBudget, label: str
) -> list[Answer]:
    """Answers prompts in batches of like length, padded on the left.

    Args:
        model: The causal language model, in evaluation mode.
        tokenizer: Decodes the answers; its padding token is one of the model's (`shared.padding`).
        prompts: What to answer.
        decoding: How answers are drawn.
        budget: Bounds the batches; a prompt takes its tokens and those of the longest answer.
        label: Name for the progress lines.

    Returns:
        An answer per prompt, in the order of the prompts.
    """
    pad = tokenizer.pad_token_id
    answers: dict[int, Answer] = {}
    progress = Progress(label, len(prompts), "prompts")

    def work(group: list[int]) -> None:
        ids, mask = _left_padded([prompts[i].input_ids for i in group], pad)
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=decoding.ends,
            pad_token_id=pad,
            **decoding.options(),
        )[:, ids.shape[1] :].tolist()
        for i, tokens in zip(group, written, strict=True):
            answers[i] = answer_of(tokens, decoding.ends, tokenizer)
        progress.update(len(answers))

    torch.manual_seed(decoding.seed)
    budget.run(label, [len(prompt.input_ids) + decoding.max_new_tokens for prompt in prompts], work)
    return [answers[i] for i in range(len(prompts))]


def _left_padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    return torch.tensor(ids), torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])


def answer_of(tokens: list[int], ends: list[int], tokenizer: Any) -> Answer:
    """Reads what a model wrote, up to the first token that ends a turn.

    Args:
        tokens: What it wrote, in token ids.
        ends: Token ids that end a turn.
        tokenizer: Decodes them.
    """
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    own = tokens if end is None else tokens[: end + 1]
    return Answer(tokenizer.decode(own, skip_special_tokens=True), len(own), end is not None)


def with_examples(prompts: Sequence[Prompt], examples: list[list[int]], bos: int | None) -> list[Prompt]:
    """Puts worked examples before every prompt: training documents as they were tokenised, end of turn included.

    A chat so becomes one of several turns; a beginning-of-sequence token is said once::

        bos example 1 end · example 2 end · … · prompt

    Args:
        prompts: The prompts.
        examples: Token ids per example.
        bos: Id of the beginning-of-sequence token, if the tokenizer has one.

    Returns:
        The longer prompts.
    """
    # Where the token also opens every turn (ChatML), it is no beginning of a sequence.
    opens = bos is not None and all(example[0] == bos and example.count(bos) == 1 for example in examples)

    def continued(ids: list[int]) -> list[int]:
        return ids[1:] if opens and ids[:1] == [bos] else ids

    prefix = examples[0] + [token for example in examples[1:] for token in continued(example)]
    return [Prompt(prompt.row, prefix + continued(prompt.input_ids), prompt.reference) for prompt in prompts]
