"""Who answers the held-out prompts, and how: base, base with examples, tuned, sampled, served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_finetune.components.evaluation.evaluate.adapter import adapted
from llm_finetune.components.evaluation.evaluate.batching import TokenBudget
from llm_finetune.components.evaluation.evaluate.endpoint import Endpoint, EndpointError, served_answers
from llm_finetune.components.evaluation.evaluate.examples import Answers
from llm_finetune.components.evaluation.evaluate.generation import (
    Answer,
    Assignment,
    Decoding,
    generate,
    with_examples,
)
from llm_finetune.components.evaluation.evaluate.judge import judge, pairs_of
from llm_finetune.components.evaluation.evaluate.models import Models
from llm_finetune.components.evaluation.evaluate.rows import Prompt, examples
from llm_finetune.components.evaluation.evaluate.scores import Scorer
from llm_finetune.components.evaluation.evaluate.settings import Settings
from llm_finetune.components.evaluation.metrics import CONTENDERS


@dataclass
class Findings:
    """What people should know beside the figures.

    Attributes:
        notes: What was done otherwise than asked for, without harm.
        problems: What was asked for and could not be measured; any of them closes the gate.
    """

    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Records a problem and prints it."""
        self.problems.append(text)
        print(f"warning: {text}", flush=True)

    def note(self, text: str) -> None:
        """Records a note and prints it."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)


def servers(settings: Settings) -> dict[str, Endpoint]:
    """Describes the servers that the settings name; nothing is sent yet.

    Args:
        settings: The card's settings.

    Returns:
        `served` and `judge`, where they are asked for.

    Raises:
        UserError: If the client is not installed.
    """
    wanted = {
        "served": (settings.endpoint, settings.endpoint_model, "ENDPOINT_API_KEY"),
        "judge": (settings.judge_endpoint, settings.judge_model, "JUDGE_API_KEY"),
    }
    return {
        name: Endpoint(address, model, key, settings.request_timeout, settings.concurrent_requests)
        for name, (address, model, key) in wanted.items()
        if address
    }


def assignments(
    models: Models, prompts: list[Prompt], train_tokens: Path | None, settings: Settings, findings: Findings
) -> dict[str, Assignment]:
    """Decides who answers the prompts, and how.

    Args:
        models: Base and tuned model.
        prompts: What to answer.
        train_tokens: Training rows for the base model's examples; None leaves that rival out.
        settings: The card's settings.
        findings: Takes notes.

    Returns:
        What each contender is to answer, in the order of `CONTENDERS`; none without prompts.
    """
    if not prompts:
        return {}
    decoding = Decoding(settings.max_new_tokens, models.ends, top_p=settings.top_p, seed=settings.seed)
    drawn = replace(decoding, temperature=settings.temperature)
    found = {"base": Assignment(prompts, decoding, tuned=False), "tuned": Assignment(prompts, decoding, tuned=True)}
    shown = _examples(models, prompts, train_tokens, settings, findings)
    if shown:
        longer = with_examples(prompts, shown, models.tokenizer.bos_token_id)
        found["base_few_shot"] = Assignment(longer, decoding, tuned=False)
    if settings.temperature:
        found |= {f"{name}_sampled": replace(found[name], decoding=drawn) for name in ("base", "tuned")}
    return {name: found[name] for name in CONTENDERS if name in found}


def generated(
    model: Any, tokenizer: Any, assigned: Mapping[str, Assignment], budget: TokenBudget
) -> dict[str, list[Answer]]:
    """Lets transformers answer.

    Args:
        model: PEFT model in evaluation mode.
        tokenizer: The tokenizer that is served.
        assigned: What each contender is to answer.
        budget: Bounds the batches.

    Returns:
        Answers by contender.
    """
    given = {}
    for name, own in assigned.items():
        with adapted(model, own.tuned):
            label = f"answers ({CONTENDERS[name]})"
            given[name] = generate(model, tokenizer, own.prompts, own.decoding, budget, label)
    return given


def compare(found: Answers, asked: Mapping[str, Endpoint], settings: Settings, findings: Findings) -> None:
    """Lets a served model answer as well, scores all answers, and asks the judge.

    Args:
        found: Prompts, at least one, and the answers of base and tuned model; what is found out goes in there too.
        asked: What `servers` returned.
        settings: The card's settings.
        findings: Takes problems.
    """
    scorer = Scorer(settings, [prompt.reference for prompt in found.prompts])
    if "served" in asked:
        _ask_served(found, asked["served"], settings.max_new_tokens, findings)
    for name, given in found.given.items():
        found.scored[name] = [scorer.score(p.reference, one) for p, one in zip(found.prompts, given, strict=True)]
    if "judge" in asked:
        _judge(found, asked["judge"], settings.judge_rival, findings)


def agreement(first: Sequence[Answer], second: Sequence[Answer]) -> float:
    """Returns the share of prompts that were answered with the same text."""
    return sum(a.text.strip() == b.text.strip() for a, b in zip(first, second, strict=True)) / len(first)


def _examples(
    models: Models, prompts: list[Prompt], train_tokens: Path | None, settings: Settings, findings: Findings
) -> list[list[int]]:
    if not settings.few_shot:
        return []
    if train_tokens is None:
        findings.note("the base model was not shown examples: no training rows were given to take them from")
        return []
    room = models.context - max(len(prompt.input_ids) for prompt in prompts) - settings.max_new_tokens
    longest = room // settings.few_shot if models.context else settings.tokens_per_batch
    shown = examples(train_tokens, settings.few_shot, longest, settings.seed)
    if not shown:
        findings.note(
            f"the base model was not shown examples: there are no {settings.few_shot} training documents of at most "
            f"{longest} tokens, what its context of {models.context} leaves for each"
        )
    return shown


def _ask_served(found: Answers, server: Endpoint, max_new_tokens: int, findings: Findings) -> None:
    try:
        found.given["served"] = served_answers(server, found.prompts, max_new_tokens)
    except EndpointError as error:
        findings.problem(f"the served model was not measured: {error}")


def _judge(found: Answers, server: Endpoint, rival: str, findings: Findings) -> None:
    if rival not in found.given:
        findings.problem(f"the judge was not asked: there are no answers of {rival} to compare with")
        return
    references = [prompt.reference for prompt in found.prompts]
    try:
        found.verdicts = judge(server, pairs_of(found.texts, references, found.given["tuned"], found.given[rival]))
    except EndpointError as error:
        findings.problem(f"the judge gave no verdicts: {error}")
