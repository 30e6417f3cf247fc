"""The gate's rules: comparisons of the evaluation's figures."""

import math
import operator
import re
from dataclasses import dataclass

from llm_finetune.components.shared.errors import UserError, nearest

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
