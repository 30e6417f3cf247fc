"""Settings of Quality Gate."""

from pydantic import Field, field_validator

from llm_finetune.components.evaluation.quality_gate.rules import parse_rules
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of Quality Gate."""

    rules: str = Field(
        default="loss_delta < 0",
        description="Comparisons separated by commas, such as 'loss_delta_ci_high < 0, stop_rate >= 0.99, "
        "task.mmlu.drop <= 2*stderr'. All must hold; empty for no rules. A requested measurement that failed closes "
        "the gate in any case.",
    )

    @field_validator("rules")
    @classmethod
    def _validate_rules(cls, rules: str) -> str:
        try:
            parse_rules(rules)
        except UserError as error:
            raise ValueError(str(error)) from None
        return rules
