"""Answers of a model to held-out prompts, and how they compare with the references."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_finetune.components.shared.losses import IGNORED
from llm_finetune.components.shared.progress import Progress


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt with its reference answer.

    Attributes:
        row: Index in the validation split.
        input_ids: The prompt as it was tokenised for training.
        reference: The answer that was wanted, as text.
    """

    row: int
    input_ids: list[int]
    reference: str


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


def prompt_of(row: int, input_ids: list[int], labels: list[int], tokenizer: Any) -> Prompt:
    """Splits a validation row into the prompt and the last answer.

    Args:
        row: Index in the validation split.
        input_ids: The row's tokens.
        labels: The row's labels; the last unbroken run of labels is the answer.
        tokenizer: Decodes the reference.

    Returns:
        The prompt.
    """
    start = len(labels)
    while start > 0 and labels[start - 1] != IGNORED:
        start -= 1
    return Prompt(row, input_ids[:start], tokenizer.decode(input_ids[start:], skip_special_tokens=True))


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], ends: list[int], max_new_tokens: int, label: str, batch: int
) -> list[Answer]:
    """Answers prompts greedily, in batches of like length.

    Args:
        model: The causal language model, in evaluation mode.
        tokenizer: Decodes the answers.
        prompts: What to answer.
        ends: Token ids that end a turn.
        max_new_tokens: Most tokens of an answer.
        label: Name for the progress lines.
        batch: Prompts answered at once.

    Returns:
        An answer per prompt, in the order of the prompts.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
    progress = Progress(label, len(prompts), "prompts")
    for first in range(0, len(order), batch):
        group = order[first : first + batch]
        longest = max(len(prompts[i].input_ids) for i in group)
        missing = [longest - len(prompts[i].input_ids) for i in group]
        ids = [[pad] * gap + prompts[i].input_ids for i, gap in zip(group, missing, strict=True)]
        mask = [[0] * gap + [1] * (longest - gap) for gap in missing]
        written = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=pad,
        )[:, longest:].tolist()
        for i, tokens in zip(group, written, strict=True):
            answers[i] = _answer(tokens, ends, tokenizer)
        progress.update(len(answers))
    return [answers[i] for i in range(len(prompts))]


def _answer(tokens: list[int], ends: list[int], tokenizer: Any) -> Answer:
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    own = tokens if end is None else tokens[: end + 1]
    return Answer(tokenizer.decode(own, skip_special_tokens=True), len(own), end is not None)


def figures(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> dict[str, float]:
    """Compares answers with their references.

    Args:
        prompts: Prompts with references, at least one.
        answers: An answer each.

    Returns:
        `exact_match` (share equal to the reference after trimming), `stop_rate`, `mean_tokens`; where every reference
        is a JSON object also `json_valid` (share of answers that are one) and `field_f1` (micro-averaged F1 over pairs
        of key and value; an answer that is no object has no pairs).
    """
    count = len(prompts)
    found = {
        "exact_match": sum(a.text.strip() == p.reference.strip() for p, a in zip(prompts, answers, strict=True))
        / count,
        "stop_rate": sum(answer.stopped for answer in answers) / count,
        "mean_tokens": sum(answer.tokens for answer in answers) / count,
    }
    references = [json_object(prompt.reference) for prompt in prompts]
    if all(reference is not None for reference in references):
        objects = [json_object(answer.text) for answer in answers]
        pairs = [(_fields(r), _fields(o)) for r, o in zip(references, objects, strict=True)]
        hits = sum(len(wanted & given) for wanted, given in pairs)
        total = sum(len(wanted) + len(given) for wanted, given in pairs)
        found["json_valid"] = sum(o is not None for o in objects) / count
        found["field_f1"] = 2 * hits / total if total else 1.0
    return found


def json_object(text: str) -> dict[str, Any] | None:
    """Returns the JSON object that a text is, or None if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fields(value: dict[str, Any] | None) -> set[tuple[str, str]]:
    return {(key, json.dumps(field, sort_keys=True)) for key, field in (value or {}).items()}
