"""A language model as judge: pairs of answers, each shown in both orders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_finetune.components.evaluation.evaluate.endpoint import Endpoint, EndpointError
from llm_finetune.components.evaluation.evaluate.generation import Answer
from llm_finetune.components.evaluation.evaluate.intervals import Ratio, intervals

INSTRUCTION = """\
You are an impartial judge. Two assistants answered the same request; a reference answer shows what was wanted. Decide \
which answer serves the request better: correctness first, then completeness, then form. Do not let the order, the \
length or the assistants' names influence you. Say in one sentence why, then end with your verdict in brackets: [[A]] \
if assistant A is better, [[B]] if assistant B is better, [[C]] for a tie."""
"""After MT-Bench's pairwise judge (arXiv 2306.05685), with the held-out answer as reference."""
SHOWN_CHARACTERS = 8000
REPLY_TOKENS = 512
WIN, TIE, LOSS, UNREADABLE = "win", "tie", "loss", "unreadable"


@dataclass(frozen=True)
class Pair:
    """Two answers to compare.

    Attributes:
        prompt: The request as text.
        reference: The answer that was wanted.
        tuned: Answer of the tuned model.
        rival: Answer that it is compared with.
    """

    prompt: str
    reference: str
    tuned: str
    rival: str


@dataclass(frozen=True)
class Verdict:
    """A judge's verdicts on one pair, each from the tuned model's side: win, tie, loss or unreadable.

    Attributes:
        tuned_first: With the tuned model's answer shown first.
        tuned_second: With it shown second.
        prompt_tokens: Tokens read by the judge.
        completion_tokens: Tokens written by the judge.
    """

    tuned_first: str
    tuned_second: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def outcome(self) -> str:
        """The same verdict in both orders stands; anything else is a tie."""
        return self.tuned_first if self.tuned_first == self.tuned_second != UNREADABLE else TIE


def pairs_of(prompts: Sequence[str], references: Sequence[str], tuned: list[Answer], rival: list[Answer]) -> list[Pair]:
    """Returns the pairs to compare, in the order of the prompts."""
    return [
        Pair(*texts)
        for texts in zip(prompts, references, (one.text for one in tuned), (one.text for one in rival), strict=True)
    ]


def judge(endpoint: Endpoint, pairs: Sequence[Pair]) -> list[Verdict]:
    """Asks the judge twice per pair.

    Args:
        endpoint: The judge.
        pairs: What to compare.

    Returns:
        A verdict per pair.

    Raises:
        EndpointError: If the judge cannot be reached, refuses or takes too long, or no reply holds a verdict.
    """
    asked = [(pair, tuned_first) for pair in pairs for tuned_first in (True, False)]

    def ask(client: Any, item: tuple[Pair, bool]) -> tuple[str, int, int]:
        reply = client.chat.completions.create(
            model=endpoint.model, messages=_messages(*item), temperature=0.0, max_tokens=REPLY_TOKENS
        )
        verdict = _verdict(endpoint.choice(reply).message.content or "", item[1])
        return verdict, *((reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else (0, 0))

    told = endpoint.each(asked, ask, "judge")
    if all(verdict == UNREADABLE for verdict, _, _ in told):
        raise EndpointError(f"none of the judge's {len(told)} replies ends with a verdict: is {endpoint.model!r} able?")
    return [
        Verdict(first, second, read + read_again, wrote + wrote_again)
        for (first, read, wrote), (second, read_again, wrote_again) in zip(told[::2], told[1::2], strict=True)
    ]


def figures(verdicts: Sequence[Verdict], seed: int) -> dict[str, float | int]:
    """Counts verdicts.

    Args:
        verdicts: At least one.
        seed: Seed of the interval.

    Returns:
        `judge_win_rate` (wins and half the ties, of all pairs) with its 95 % interval, wins, ties and losses,
        `judge_agreement` (share of pairs with one verdict in both orders), unreadable replies, and the tokens it cost.
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    points = np.array([{WIN: 1.0, TIE: 0.5, LOSS: 0.0}[outcome] for outcome in outcomes])
    rate = Ratio(points, np.ones(len(points)))
    interval = intervals({"rate": rate}, {}, seed)["rate"]
    orders = [(verdict.tuned_first, verdict.tuned_second) for verdict in verdicts]
    return {
        "judge_win_rate": rate.value,
        "judge_win_rate_ci_low": interval.low,
        "judge_win_rate_ci_high": interval.high,
        "judge_wins": outcomes.count(WIN),
        "judge_ties": outcomes.count(TIE),
        "judge_losses": outcomes.count(LOSS),
        "judge_agreement": sum(first == second != UNREADABLE for first, second in orders) / len(orders),
        "judge_unreadable": sum(order.count(UNREADABLE) for order in orders),
        "judge_prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
        "judge_completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
    }


def _messages(pair: Pair, tuned_first: bool) -> list[dict[str, str]]:
    first, second = (pair.tuned, pair.rival) if tuned_first else (pair.rival, pair.tuned)
    parts = {"Request": pair.prompt, "Reference": pair.reference, "Assistant A": first, "Assistant B": second}
    content = "\n\n".join(f"[{name}]\n{text[:SHOWN_CHARACTERS]}\n[End of {name}]" for name, text in parts.items())
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]


def _verdict(text: str, tuned_first: bool) -> str:
    found = re.findall(r"\[\[([ABC])\]\]", text)
    if not found:
        return UNREADABLE
    if found[-1] == "C":
        return TIE
    return WIN if (found[-1] == "A") == tuned_first else LOSS
