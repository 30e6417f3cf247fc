"""Quality Gate: rules over the evaluation's figures, fixed before the run."""

import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import field_validator

from llm_finetune.components.shared.errors import UserError, nearest
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.settings import CardSettings

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
BOTH = ("loss", "perplexity", "exact_match", "stop_rate", "mean_tokens", "json_valid", "field_f1")
FIGURES = (
    *(f"{model}_{figure}" for model in ("base", "tuned") for figure in BOTH),
    *(
        "loss_delta",
        "loss_delta_ci_low",
        "loss_delta_ci_high",
        "samples_used",
        "completion_tokens",
        "generated_samples",
    ),
)
"""Figures that Evaluate reports; `json_valid` and `field_f1` only where every reference is a JSON object."""


@dataclass(frozen=True)
class Rule:
    """One comparison, such as `tuned_stop_rate >= 0.99` or `tuned_exact_match > base_exact_match`.

    Attributes:
        text: The rule as written.
        figure: The figure on the left.
        comparison: One of <, <=, >, >=, ==.
        limit: A number or another figure.
    """

    text: str
    figure: str
    comparison: str
    limit: float | str


@dataclass(frozen=True)
class Verdict:
    """A rule's outcome.

    Attributes:
        rule: The rule as written.
        passed: Whether it holds; False when a figure is missing.
        reason: The figures compared, or which one is missing.
    """

    rule: str
    passed: bool
    reason: str


class Settings(CardSettings):
    """Settings of the Quality Gate; `component.py` describes them."""

    rules: str = "loss_delta < 0"

    @field_validator("rules")
    @classmethod
    def _readable(cls, rules: str) -> str:
        try:
            parse_rules(rules)
        except UserError as error:
            raise ValueError(str(error)) from None
        return rules


def parse_rules(text: str) -> list[Rule]:
    """Reads rules separated by commas.

    Args:
        text: Such as `loss_delta_ci_high < 0, tuned_stop_rate >= 0.99`; empty means that the gate is always open.

    Returns:
        The rules.

    Raises:
        UserError: Naming the rule that cannot be read, or the figure that does not exist and the nearest one.
    """
    rules = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\w+)\s*(<=|>=|==|<|>)\s*([-+.\w]+)", part)
        if not match:
            raise UserError(f"the gate's rule {part!r} is not of the form 'figure < limit' (or <=, >, >=, ==)")
        figure, comparison, limit = match.groups()
        try:
            number: float | str = float(limit)
        except ValueError:
            number = limit
        if number != number or number in (math.inf, -math.inf):
            raise UserError(f"the gate's rule {part!r} has a limit that is no number: {limit}")
        for name in (figure, number):
            if isinstance(name, str) and name not in FIGURES:
                raise UserError(
                    f"the gate's rule {part!r} names {name!r}, which no evaluation reports"
                    f"{nearest(name, FIGURES)} (figures: {', '.join(FIGURES)})"
                )
        rules.append(Rule(part, figure, comparison, number))
    return rules


def judge(rules: list[Rule], metrics: Mapping[str, float]) -> list[Verdict]:
    """Applies rules to figures.

    Args:
        rules: The rules.
        metrics: The evaluation's figures.

    Returns:
        A verdict per rule.
    """
    verdicts = []
    for rule in rules:
        figures = [name for name in (rule.figure, rule.limit) if isinstance(name, str)]
        missing = [name for name in figures if name not in metrics]
        if missing:
            verdicts.append(Verdict(rule.text, False, f"{missing[0]} was not measured"))
            continue
        value = metrics[rule.figure]
        limit = metrics[rule.limit] if isinstance(rule.limit, str) else rule.limit
        passed = bool(COMPARISONS[rule.comparison](value, limit))
        reason = f"{rule.figure} = {value:.6g}" + (
            f", {rule.limit} = {limit:.6g}" if isinstance(rule.limit, str) else ""
        )
        verdicts.append(Verdict(rule.text, passed, reason))
    return verdicts


def quality_gate(eval_report: str | Path, gate_report: str | Path, settings: Settings) -> tuple[bool, str]:
    """Decides whether the tuned model may be deployed, and says why.

    Args:
        eval_report: Evaluate's report file.
        gate_report: Markdown page to write.
        settings: The rules.

    Returns:
        Whether the gate is open, and the reason in one line.

    Raises:
        UserError: If the report cannot be read.
    """
    try:
        metrics = json.loads(Path(eval_report).read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{eval_report} is not a report of the Evaluate card: {error}") from error
    verdicts = judge(parse_rules(settings.rules), metrics)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    opened = not failed
    reason = (
        "not deployed, because " + "; ".join(f"{verdict.rule} does not hold: {verdict.reason}" for verdict in failed)
        if failed
        else f"all {len(verdicts)} rules hold"
        if verdicts
        else "no rules were set"
    )
    lines = [f"# Quality Gate: {'open' if opened else 'closed'}", "", reason[0].upper() + reason[1:] + "."]
    if verdicts:
        lines += ["", "| rule | holds | measured |", "|---|---|---|"]
        lines += [f"| `{v.rule}` | {'yes' if v.passed else '**no**'} | {v.reason} |" for v in verdicts]
    write_text(gate_report, "\n".join(lines) + "\n")
    return opened, reason
