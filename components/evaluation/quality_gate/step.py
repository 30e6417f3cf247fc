"""Quality Gate: rules over the evaluation's figures, fixed before the run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_finetune.components.evaluation.quality_gate.rules import COMPARISONS, Rule, parse_rules
from llm_finetune.components.evaluation.quality_gate.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import write_text


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
