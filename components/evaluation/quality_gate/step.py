"""Quality Gate: rules over the evaluation's figures, fixed before the run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_finetune.components.evaluation.quality_gate.rules import COMPARISONS, Rule, parse_rules
from llm_finetune.components.evaluation.quality_gate.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.summary import cell


@dataclass(frozen=True)
class Verdict:
    """A rule's outcome.

    Attributes:
        rule: The rule as written.
        passed: Whether it holds; False when a figure is missing or is no finite number.
        reason: The figures compared, or which one is missing.
    """

    rule: str
    passed: bool
    reason: str


def judge(rules: list[Rule], metrics: Mapping[str, Any]) -> list[Verdict]:
    """Applies rules to figures.

    Args:
        rules: The rules.
        metrics: The evaluation's figures.

    Returns:
        A verdict per rule.
    """
    return [_verdict(rule, metrics) for rule in rules]


def _verdict(rule: Rule, metrics: Mapping[str, Any]) -> Verdict:
    figures = [name for name in (rule.figure, rule.limit) if isinstance(name, str)]
    for name in figures:
        if name not in metrics:
            return Verdict(rule.text, False, f"{name} was not measured")
        if not _is_number(metrics[name]):
            return Verdict(rule.text, False, f"{name} = {metrics[name]!r} is no finite number")
    value = metrics[rule.figure]
    limit = rule.factor * metrics[rule.limit] if isinstance(rule.limit, str) else rule.limit
    passed = bool(COMPARISONS[rule.comparison](value, limit))
    reason = ", ".join(f"{name} = {metrics[name]:.6g}" for name in figures)
    return Verdict(rule.text, passed, reason)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
        report = json.loads(Path(eval_report).read_text(encoding="utf-8"))
        metrics, problems = dict(report["metrics"]), list(report.get("problems", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{eval_report} is not a report of the Evaluate card: {error}") from error
    verdicts = judge(parse_rules(settings.rules), metrics)
    reasons = [f"{verdict.rule} does not hold: {verdict.reason}" for verdict in verdicts if not verdict.passed]
    # What was asked for and could not be measured closes the gate, whether or not a rule names it.
    reasons += problems
    reason = _reason(reasons, len(verdicts))
    write_text(gate_report, _page(not reasons, reason, verdicts, problems, metrics))
    return not reasons, reason


def _reason(reasons: Sequence[str], rules: int) -> str:
    if reasons:
        return "not deployed, because " + "; ".join(reasons)
    return f"all {rules} rules hold" if rules else "no rules were set"


def _page(
    opened: bool, reason: str, verdicts: Sequence[Verdict], problems: Sequence[str], metrics: Mapping[str, Any]
) -> str:
    lines = [f"# Quality Gate: {'open' if opened else 'closed'}", "", reason[0].upper() + reason[1:] + "."]
    if verdicts:
        lines += ["", "| rule | holds | measured |", "|:--|:--|:--|"]
        lines += [f"| `{v.rule}` | {'yes' if v.passed else '**no**'} | {cell(v.reason)} |" for v in verdicts]
    if problems:
        lines += ["", "## Not measured", "", *(f"- {cell(problem)}" for problem in problems)]
    headline = [
        name for name in ("base_loss", "tuned_loss", "loss_delta_ci_low", "loss_delta_ci_high") if name in metrics
    ]
    if len(headline) == 4 and all(_is_number(metrics[name]) for name in headline):
        base, tuned, low, high = (metrics[name] for name in headline)
        lines += ["", f"Loss {base:.4f} → {tuned:.4f}; 95 % interval of the difference {low:+.4f} to {high:+.4f}."]
    return "\n".join(lines) + "\n"
