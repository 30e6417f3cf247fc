"""Settings of the Quality Gate."""

from pydantic import Field, field_validator

from llm_finetune.components.evaluation.quality_gate.rules import parse_rules
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Quality Gate; `component.py` describes them."""

    rules: str = Field(
        default="loss_delta < 0",
        description="Comparisons separated by commas, such as 'loss_delta_ci_high < 0, stop_rate >= 0.99, "
        "task.mmlu.drop <= 2*stderr'. All must hold; empty sets no rule. What Evaluate was asked for and could not "
        "measure closes the gate in any case.",
    )

    @field_validator("rules")
    @classmethod
    def _readable(cls, rules: str) -> str:
        try:
            parse_rules(rules)
        except UserError as error:
            raise ValueError(str(error)) from None
        return rules
