"""Candidates of the comparison: base, base with examples, tuned, sampled and served model; their answers and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_finetune.components.evaluation.evaluate.adapter import use_adapter
from llm_finetune.components.evaluation.evaluate.answers import AnswerSet
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.endpoint import Endpoint, EndpointError, query_served_model
from llm_finetune.components.evaluation.evaluate.findings import Findings
from llm_finetune.components.evaluation.evaluate.generation import (
    Answer,
    Decoding,
    GenerationRequest,
    generate,
    prepend_examples,
)
from llm_finetune.components.evaluation.evaluate.judge import judge_pairs, make_pairs
from llm_finetune.components.evaluation.evaluate.models import Models
from llm_finetune.components.evaluation.evaluate.rows import Prompt, sample_examples
from llm_finetune.components.evaluation.evaluate.scores import Scorer
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.metrics import CANDIDATES


def create_endpoints(settings: Settings) -> dict[str, Endpoint]:
    """Creates the clients of the configured servers; no request is sent.

    Args:
        settings: Settings of the card.

    Returns:
        `served` and `judge`, if configured.

    Raises:
        UserError: If the OpenAI client is not installed.
    """
    configured = {
        "served": (settings.endpoint, settings.endpoint_model, "ENDPOINT_API_KEY"),
        "judge": (settings.judge_endpoint, settings.judge_model, "JUDGE_API_KEY"),
    }
    return {
        name: Endpoint(url, model, key, settings.request_timeout, settings.concurrent_requests)
        for name, (url, model, key) in configured.items()
        if url
    }


def generation_requests(
    models: Models, prompts: list[Prompt], train_tokens: Path | None, settings: Settings, findings: Findings
) -> dict[str, GenerationRequest]:
    """Determines which candidates generate answers, with which prompts and decoding.

    Args:
        models: Base and tuned model.
        prompts: Validation prompts.
        train_tokens: Training rows that few-shot examples are sampled from; None for no few-shot candidate.
        settings: Settings of the card.
        findings: Receives notes.

    Returns:
        Requests by candidate, in the order of `CANDIDATES`; empty without prompts.
    """
    if not prompts:
        return {}
    greedy = Decoding(settings.max_new_tokens, models.stop_token_ids, top_p=settings.top_p, seed=settings.seed)
    requests = {
        "base": GenerationRequest(prompts, greedy, tuned=False),
        "tuned": GenerationRequest(prompts, greedy, tuned=True),
    }
    examples = _sample_examples(models, prompts, train_tokens, settings, findings)
    if examples:
        longer = prepend_examples(prompts, examples, models.tokenizer.bos_token_id)
        requests["base_few_shot"] = GenerationRequest(longer, greedy, tuned=False)
    if settings.temperature:
        sampled = replace(greedy, temperature=settings.temperature)
        requests |= {f"{name}_sampled": replace(requests[name], decoding=sampled) for name in ("base", "tuned")}
    return {name: requests[name] for name in CANDIDATES if name in requests}


def generate_answers(
    model: Any, tokenizer: Any, requests: Mapping[str, GenerationRequest], budget: TokenBudget
) -> dict[str, list[Answer]]:
    """Generates answers with transformers.

    Args:
        model: PEFT model in evaluation mode.
        tokenizer: Tokenizer of the tuned model.
        requests: Requests by candidate.
        budget: Limits the batches.

    Returns:
        Answers by candidate.
    """
    answers = {}
    for name, request in requests.items():
        with use_adapter(model, request.tuned):
            label = f"answers ({CANDIDATES[name]})"
            answers[name] = generate(model, tokenizer, request.prompts, request.decoding, budget, label)
    return answers


def score_answers(
    answers: AnswerSet, endpoints: Mapping[str, Endpoint], settings: Settings, findings: Findings
) -> None:
    """Adds the served model's answers, the scores of all answers, and the judge's verdicts.

    Args:
        answers: Prompts, at least one, and the answers of base and tuned model; modified in place.
        endpoints: Result of `create_endpoints`.
        settings: Settings of the card.
        findings: Receives problems.
    """
    scorer = Scorer(settings, [prompt.reference for prompt in answers.prompts])
    if "served" in endpoints:
        _query_served_model(answers, endpoints["served"], settings.max_new_tokens, findings)
    for name, own in answers.answers.items():
        answers.scores[name] = [
            scorer.score(prompt.reference, answer) for prompt, answer in zip(answers.prompts, own, strict=True)
        ]
    if "judge" in endpoints:
        _judge(answers, endpoints["judge"], settings.judge_baseline, findings)


def agreement(first: Sequence[Answer], second: Sequence[Answer]) -> float:
    """Returns the share of prompts with the same answer from both candidates."""
    return sum(a.text.strip() == b.text.strip() for a, b in zip(first, second, strict=True)) / len(first)


def _sample_examples(
    models: Models, prompts: list[Prompt], train_tokens: Path | None, settings: Settings, findings: Findings
) -> list[list[int]]:
    if not settings.few_shot:
        return []
    if train_tokens is None:
        findings.add_note("base_few_shot was not measured: its examples come from train_tokens, which is not connected")
        return []
    available = models.context_length - max(len(prompt.input_ids) for prompt in prompts) - settings.max_new_tokens
    max_tokens = available // settings.few_shot if models.context_length else settings.tokens_per_batch
    examples = sample_examples(train_tokens, settings.few_shot, max_tokens, settings.seed)
    if not examples:
        findings.add_note(
            f"base_few_shot was not measured: there are not {settings.few_shot} training documents of at most "
            f"{max_tokens} tokens, the length that fits {settings.few_shot} times into the context of "
            f"{models.context_length} tokens"
        )
    return examples


def _query_served_model(answers: AnswerSet, endpoint: Endpoint, max_new_tokens: int, findings: Findings) -> None:
    try:
        answers.answers["served"] = query_served_model(endpoint, answers.prompts, max_new_tokens)
    except EndpointError as error:
        findings.add_problem(f"the served model was not measured: {error}")


def _judge(answers: AnswerSet, endpoint: Endpoint, baseline: str, findings: Findings) -> None:
    if baseline not in answers.answers:
        findings.add_problem(f"the judge was not asked: there are no answers of {baseline} to compare with")
        return
    references = [prompt.reference for prompt in answers.prompts]
    pairs = make_pairs(answers.texts, references, answers.answers["tuned"], answers.answers[baseline])
    try:
        answers.verdicts = judge_pairs(endpoint, pairs)
    except EndpointError as error:
        findings.add_problem(f"the judge gave no verdicts: {error}")
