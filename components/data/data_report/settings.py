"""Settings of the Data Report card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    pii: Literal["off", "report"] = "report"
    phone_region: str = Field("US", pattern="^[A-Z]{2}$")
    language_rows: int = Field(2000, ge=0)
