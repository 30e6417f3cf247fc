"""Settings of the Data Report card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    pii: Literal["off", "report"] = Field(
        default="report",
        description="`report` counts personal data and secrets; `off` does not, and still masks them where rows are "
        "shown.",
    )
    phone_region: str = Field(
        default="US",
        pattern="^[A-Z]{2}$",
        description="Country whose phone numbers may stand without a country code, as two letters.",
    )
    language_rows: int = Field(
        default=2000, ge=0, description="Rows of each dataset whose language is told, evenly spread; 0 tells none."
    )
