"""LLM as a judge: pairs of answers, each compared in both orders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from llm_finetune.components.evaluation.evaluate.endpoint import Endpoint, EndpointError
from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.intervals import Ratio, bootstrap_intervals

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam

INSTRUCTION = """\
You are an impartial judge. Two assistants answered the same request; a reference answer shows what was wanted. Decide \
which answer serves the request better: correctness first, then completeness, then form. Do not let the order, the \
length or the assistants' names influence you. Say in one sentence why, then end with your verdict in brackets: [[A]] \
if assistant A is better, [[B]] if assistant B is better, [[C]] for a tie."""
"""After MT-Bench's pairwise judge (arXiv 2306.05685), with the reference answer added."""
PROMPT_CHARACTERS = 8000
REPLY_TOKENS = 512
POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}

Outcome = Literal["win", "tie", "loss", "unreadable"]


@dataclass(frozen=True)
class Pair:
    """Two answers to compare.

    Attributes:
        prompt: The prompt as text.
        reference: Expected answer.
        tuned: Answer of the tuned model.
        baseline: Answer of the baseline.
    """

    prompt: str
    reference: str
    tuned: str
    baseline: str


@dataclass(frozen=True)
class Verdict:
    """The judge's verdicts on one pair, both from the tuned model's side.

    Attributes:
        tuned_first: Verdict with the tuned model's answer shown first.
        tuned_second: Verdict with the tuned model's answer shown second.
        prompt_tokens: Prompt tokens of both requests.
        completion_tokens: Completion tokens of both requests.
    """

    tuned_first: Outcome
    tuned_second: Outcome
    prompt_tokens: int
    completion_tokens: int

    @property
    def outcome(self) -> Outcome:
        """The verdict if it is the same in both orders, else a tie."""
        return self.tuned_first if self.tuned_first == self.tuned_second != "unreadable" else "tie"

    def as_json(self) -> dict[str, str]:
        """Returns both verdicts and the outcome, for report and examples."""
        return {"tuned_first": self.tuned_first, "tuned_second": self.tuned_second, "outcome": self.outcome}


def make_pairs(
    prompts: Sequence[str], references: Sequence[str], tuned: Sequence[Answer], baseline: Sequence[Answer]
) -> list[Pair]:
    """Returns the pairs to compare, in the order of the prompts."""
    return [
        Pair(prompt, reference, ours.text, theirs.text)
        for prompt, reference, ours, theirs in zip(prompts, references, tuned, baseline, strict=True)
    ]


def judge_pairs(endpoint: Endpoint, pairs: Sequence[Pair]) -> list[Verdict]:
    """Asks the judge twice per pair, once in each order.

    Args:
        endpoint: The judge.
        pairs: The pairs.

    Returns:
        One verdict per pair.

    Raises:
        EndpointError: If the judge cannot be reached, refuses a request or times out, or if no reply has a verdict.
    """

    def send(client: "OpenAI", item: tuple[Pair, bool]) -> tuple[Outcome, int, int]:
        pair, tuned_first = item
        completion = client.chat.completions.create(
            model=endpoint.model, messages=_messages(pair, tuned_first), temperature=0.0, max_tokens=REPLY_TOKENS
        )
        outcome = _parse_verdict(endpoint.first_choice(completion).message.content or "", tuned_first)
        usage = completion.usage
        return outcome, usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0

    replies = endpoint.map([(pair, tuned_first) for pair in pairs for tuned_first in (True, False)], send, "judge")
    if all(outcome == "unreadable" for outcome, _, _ in replies):
        raise EndpointError(
            f"none of the judge's {len(replies)} replies ends with a verdict: use another model than {endpoint.model!r}"
        )
    return [
        Verdict(first, second, prompt_1 + prompt_2, completion_1 + completion_2)
        for (first, prompt_1, completion_1), (second, prompt_2, completion_2) in zip(
            replies[::2], replies[1::2], strict=True
        )
    ]


def judge_metrics(verdicts: Sequence[Verdict], seed: int) -> dict[str, float | int]:
    """Counts verdicts.

    Args:
        verdicts: At least one.
        seed: Random seed of the interval.

    Returns:
        `judge_win_rate` (wins plus half of the ties, divided by all pairs) with its 95 % interval, wins, ties and
        losses, `judge_agreement` (share of pairs with the same verdict in both orders), unreadable replies, and tokens.
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    points = np.array([POINTS[outcome] for outcome in outcomes])
    rate = Ratio(points, np.ones(len(points)))
    interval = bootstrap_intervals({"rate": rate}, {}, seed)["rate"]
    orders = [(verdict.tuned_first, verdict.tuned_second) for verdict in verdicts]
    return {
        "judge_win_rate": rate.value,
        "judge_win_rate_ci_low": interval.low,
        "judge_win_rate_ci_high": interval.high,
        "judge_wins": outcomes.count("win"),
        "judge_ties": outcomes.count("tie"),
        "judge_losses": outcomes.count("loss"),
        "judge_agreement": sum(first == second != "unreadable" for first, second in orders) / len(orders),
        "judge_unreadable": sum(order.count("unreadable") for order in orders),
        "judge_prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
        "judge_completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
    }


def _messages(pair: Pair, tuned_first: bool) -> "list[ChatCompletionMessageParam]":
    first, second = (pair.tuned, pair.baseline) if tuned_first else (pair.baseline, pair.tuned)
    parts = {"Request": pair.prompt, "Reference": pair.reference, "Assistant A": first, "Assistant B": second}
    content = "\n\n".join(f"[{name}]\n{text[:PROMPT_CHARACTERS]}\n[End of {name}]" for name, text in parts.items())
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]


def _parse_verdict(reply: str, tuned_first: bool) -> Outcome:
    verdicts = re.findall(r"\[\[([ABC])\]\]", reply)
    if not verdicts:
        return "unreadable"
    if verdicts[-1] == "C":
        return "tie"
    return "win" if (verdicts[-1] == "A") == tuned_first else "loss"
