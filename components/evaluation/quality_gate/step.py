"""Quality Gate: compares the evaluation's metrics with rules that were set before the run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from llm_finetune.components.evaluation.quality_gate.rules import COMPARISONS, Rule, parse_rules
from llm_finetune.components.evaluation.quality_gate.settings import Settings
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.files import write_text
from llm_finetune.components.shared.markdown import Markdown, cell, code, table


@dataclass(frozen=True)
class RuleResult:
    """Result of one rule.

    Attributes:
        rule: The rule as written.
        passed: Whether it holds; False if a metric is missing or is not a finite number.
        reason: The values compared, or why they cannot be compared.
    """

    rule: str
    passed: bool
    reason: str


def apply_rules(rules: Sequence[Rule], metrics: Mapping[str, object]) -> list[RuleResult]:
    """Compares metrics with rules.

    Args:
        rules: The rules.
        metrics: The evaluation's metrics.

    Returns:
        One result per rule.
    """
    return [_apply(rule, metrics) for rule in rules]


def _apply(rule: Rule, metrics: Mapping[str, object]) -> RuleResult:
    values: dict[str, float] = {}
    for name in (rule.metric, rule.limit):
        if not isinstance(name, str):
            continue
        if name not in metrics:
            return RuleResult(rule.text, False, f"{name} was not measured")
        value = metrics[name]
        if not _is_finite(value):
            return RuleResult(rule.text, False, f"{name} = {value!r} is not a finite number")
        values[name] = value
    limit = rule.factor * values[rule.limit] if isinstance(rule.limit, str) else rule.limit
    passed = bool(COMPARISONS[rule.comparison](values[rule.metric], limit))
    return RuleResult(rule.text, passed, ", ".join(f"{name} = {value:.6g}" for name, value in values.items()))


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def quality_gate(eval_report: str | Path, gate_report: str | Path, settings: Settings) -> tuple[bool, str]:
    """Decides whether the tuned model may be deployed.

    Args:
        eval_report: Evaluate's report file.
        gate_report: Markdown page to write.
        settings: The rules.

    Returns:
        Whether the gate is open, and the reason in one line.

    Raises:
        UserError: If the file is not a report of Evaluate.
    """
    try:
        report = json.loads(Path(eval_report).read_text(encoding="utf-8"))
        metrics, problems = dict(report["metrics"]), [str(problem) for problem in report.get("problems", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{eval_report} is not a report of the Evaluate card: {error}") from error
    results = apply_rules(parse_rules(settings.rules), metrics)
    reasons = [f"{result.rule} does not hold: {result.reason}" for result in results if not result.passed]
    # A requested measurement that failed closes the gate, whether or not a rule names it.
    reasons += problems
    reason = _summarize(reasons, len(results))
    write_text(gate_report, _page(not reasons, reason, results, problems, metrics))
    return not reasons, reason


def _summarize(reasons: Sequence[str], rules: int) -> str:
    if reasons:
        return "not deployed, because " + "; ".join(reasons)
    return f"all {rules} rules hold" if rules else "no rules were set"


def _page(
    is_open: bool, reason: str, results: Sequence[RuleResult], problems: Sequence[str], metrics: Mapping[str, object]
) -> str:
    lines = [f"# Quality Gate: {'open' if is_open else 'closed'}", "", reason[0].upper() + reason[1:] + "."]
    if results:
        rows = [(code(r.rule), "yes" if r.passed else Markdown("**no**"), r.reason) for r in results]
        lines += ["", *table(("rule", "holds", "measured"), rows)]
    if problems:
        lines += ["", "## Not measured", "", *(f"- {cell(problem)}" for problem in problems)]
    loss = [metrics.get(name) for name in ("base_loss", "tuned_loss", "loss_delta_ci_low", "loss_delta_ci_high")]
    numbers = [value for value in loss if _is_finite(value)]
    if len(numbers) == len(loss):
        base, tuned, low, high = numbers
        lines += ["", f"Loss {base:.4f} → {tuned:.4f}; 95 % interval of the difference {low:+.4f} to {high:+.4f}."]
    return "\n".join(lines) + "\n"
