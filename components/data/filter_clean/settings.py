"""Settings of the Filter & Clean card."""

from typing import Literal

from pydantic import Field, model_validator

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    min_chars: int = Field(16, ge=0)
    max_chars: int = Field(4096, ge=0)
    drop_if_missing_output: bool = True
    dedup: Literal["none", "exact", "near"] = "exact"
    near_threshold: float = Field(0.8, ge=0.3, le=1.0)
    pii: Literal["off", "report", "redact"] = "report"

    @model_validator(mode="after")
    def _limits_leave_room(self) -> "Settings":
        if self.max_chars and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars = {self.max_chars} is below min_chars = {self.min_chars}; 0 means no limit")
        return self
