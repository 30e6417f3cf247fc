"""Rules of Quality Gate: comparisons of the evaluation's metrics."""

import math
import operator
import re
from dataclasses import dataclass

from llm_finetune.components.evaluation.metrics import (
    ANSWER_METRICS,
    INTERVAL_SUFFIXES,
    LOSS_METRICS,
    METRIC_NAMES,
    TASK_PARTS,
)
from llm_finetune.components.shared.errors import UserError, nearest

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
ALIASES = {
    **{metric.name: f"tuned_{metric.name}" for metric in LOSS_METRICS},
    **{
        f"{metric.name}{suffix}": f"tuned_{metric.name}{suffix}"
        for metric in ANSWER_METRICS
        for suffix in ("", *INTERVAL_SUFFIXES)
    },
}
"""A metric without a candidate's prefix is the tuned model's: `stop_rate` is `tuned_stop_rate`."""
METRIC = r"[A-Za-z_][\w.:/-]*"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RULE = re.compile(rf"({METRIC})\s*(<=|>=|==|<|>)\s*(?:({NUMBER})\s*\*\s*)?({NUMBER}|{METRIC})")


@dataclass(frozen=True)
class Rule:
    """One comparison, such as `tuned_stop_rate >= 0.99` or `task.mmlu.drop <= 2*stderr`.

    Attributes:
        text: The rule as written.
        metric: Name of the metric on the left.
        comparison: One of <, <=, >, >=, ==.
        limit: A number, or the name of another metric.
        factor: Factor of the other metric.
    """

    text: str
    metric: str
    comparison: str
    limit: float | str
    factor: float = 1.0


def parse_rules(text: str) -> list[Rule]:
    """Parses rules separated by commas.

    Args:
        text: Such as `loss_delta_ci_high < 0, stop_rate >= 0.99, task.mmlu.drop <= 2*stderr`; empty for no rules.

    Returns:
        The rules.

    Raises:
        UserError: If a rule is malformed or names an unknown metric; the message suggests the nearest name.
    """
    return [_parse(part) for part in filter(None, (piece.strip() for piece in text.split(",")))]


def _parse(text: str) -> Rule:
    match = RULE.fullmatch(text)
    if not match:
        raise UserError(
            f"the gate's rule {text!r} is not of the form 'metric < limit' (or <=, >, >=, ==), where the limit is a "
            "number, a metric or a number times a metric"
        )
    left, comparison, factor, right = match.groups()
    metric = _full_name(left, text)
    scale = _finite(factor, text) if factor else 1.0
    if re.fullmatch(NUMBER, right):
        return Rule(text, metric, comparison, scale * _finite(right, text))
    if right == "stderr" and metric.startswith("task."):
        return Rule(text, metric, comparison, f"{metric.rpartition('.')[0]}.stderr", scale)
    return Rule(text, metric, comparison, _full_name(right, text), scale)


def _finite(number: str, rule: str) -> float:
    if not math.isfinite(float(number)):
        raise UserError(f"the gate's rule {rule!r} has a limit that is not a finite number: {number}")
    return float(number)


def _full_name(name: str, rule: str) -> str:
    """Returns a metric's full name; task names depend on the run's settings, so only their parts are checked."""
    if name.startswith("task."):
        part = name.rpartition(".")[2]
        if name.count(".") < 2 or part not in TASK_PARTS:
            raise UserError(
                f"the gate's rule {rule!r} names {name!r}: the metrics of a task are {', '.join(TASK_PARTS)}, such as "
                f"task.mmlu.drop{nearest(part, TASK_PARTS)}"
            )
        return name
    if name in ALIASES:
        return ALIASES[name]
    if name not in METRIC_NAMES:
        common = [known for known in ("loss_delta", *ALIASES) if not known.endswith(INTERVAL_SUFFIXES)]
        raise UserError(
            f"the gate's rule {rule!r} names {name!r}, which no evaluation reports"
            f"{nearest(name, (*METRIC_NAMES, *ALIASES))} (such as {', '.join(common)}, and each with "
            f"{' or '.join(INTERVAL_SUFFIXES)})"
        )
    return name
