"""The gate's rules: comparisons of the evaluation's figures."""

import math
import operator
import re
from dataclasses import dataclass

from llm_finetune.components.evaluation.metrics import ANSWER_FIGURES, BOUNDS, LOSS_FIGURES, NAMES, TASK_PARTS
from llm_finetune.components.shared.errors import UserError, nearest

COMPARISONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "<": operator.lt, ">": operator.gt}
ALIASES = {
    **{figure.name: f"tuned_{figure.name}" for figure in LOSS_FIGURES},
    **{f"{figure.name}{end}": f"tuned_{figure.name}{end}" for figure in ANSWER_FIGURES for end in ("", *BOUNDS)},
}
"""A figure without a name before it is the tuned model's: `stop_rate` is `tuned_stop_rate`."""
FIGURE = r"[A-Za-z_][\w.:/-]*"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RULE = re.compile(rf"({FIGURE})\s*(<=|>=|==|<|>)\s*(?:({NUMBER})\s*\*\s*)?({NUMBER}|{FIGURE})")


@dataclass(frozen=True)
class Rule:
    """One comparison, such as `tuned_stop_rate >= 0.99` or `task.mmlu.drop <= 2*stderr`.

    Attributes:
        text: The rule as written.
        figure: The figure on the left.
        comparison: One of <, <=, >, >=, ==.
        limit: A number or another figure.
        factor: What that figure is multiplied by.
    """

    text: str
    figure: str
    comparison: str
    limit: float | str
    factor: float = 1.0


def parse_rules(text: str) -> list[Rule]:
    """Reads rules separated by commas.

    Args:
        text: Such as `loss_delta_ci_high < 0, stop_rate >= 0.99, task.mmlu.drop <= 2*stderr`; empty means that the
            gate is open whatever was measured.

    Returns:
        The rules.

    Raises:
        UserError: Naming the rule that cannot be read, or the figure that does not exist and the nearest one.
    """
    return [_parse(part) for part in filter(None, (piece.strip() for piece in text.split(",")))]


def _parse(text: str) -> Rule:
    match = RULE.fullmatch(text)
    if not match:
        raise UserError(
            f"the gate's rule {text!r} is not of the form 'figure < limit' (or <=, >, >=, ==), where the limit is a "
            "number, a figure or a number times a figure"
        )
    left, comparison, factor, right = match.groups()
    figure = _known(left, text)
    times = _finite(factor, text) if factor else 1.0
    if re.fullmatch(NUMBER, right):
        return Rule(text, figure, comparison, times * _finite(right, text))
    if right == "stderr" and figure.startswith("task."):
        return Rule(text, figure, comparison, f"{figure.rpartition('.')[0]}.stderr", times)
    return Rule(text, figure, comparison, _known(right, text), times)


def _finite(number: str, rule: str) -> float:
    if not math.isfinite(float(number)):
        raise UserError(f"the gate's rule {rule!r} has a limit that is no number: {number}")
    return float(number)


def _known(name: str, rule: str) -> str:
    """Returns a figure's whole name; tasks are named by the run's settings, so only their parts are checked."""
    if name.startswith("task."):
        part = name.rpartition(".")[2]
        if name.count(".") < 2 or part not in TASK_PARTS:
            raise UserError(
                f"the gate's rule {rule!r} names {name!r}: of a task there are {', '.join(TASK_PARTS)}, such as "
                f"task.mmlu.drop{nearest(part, TASK_PARTS)}"
            )
        return name
    if name in ALIASES:
        return ALIASES[name]
    if name not in NAMES:
        common = [known for known in ("loss_delta", *ALIASES) if not known.endswith(BOUNDS)]
        raise UserError(
            f"the gate's rule {rule!r} names {name!r}, which no evaluation reports"
            f"{nearest(name, (*NAMES, *ALIASES))} (such as {', '.join(common)}, and each with {' or '.join(BOUNDS)})"
        )
    return name
