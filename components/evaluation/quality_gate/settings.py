"""Settings of the Quality Gate."""

from pydantic import field_validator

from llm_finetune.components.evaluation.quality_gate.rules import parse_rules
from llm_finetune.components.shared.errors import UserError
from llm_finetune.components.shared.settings import CardSettings


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
