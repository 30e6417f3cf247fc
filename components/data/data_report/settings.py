"""Settings of the Data Report card."""

from typing import Literal

from pydantic import Field

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    pii: Literal["off", "report"] = Field(
        default="report",
        description="`report` counts personal data and secrets; `off` does not count them. Both mask them in rows on "
        "the pages.",
    )
    phone_region: str = Field(
        default="US",
        pattern="^[A-Z]{2}$",
        description="Country of phone numbers without a country code, as two letters.",
    )
    language_rows: int = Field(
        default=2000,
        ge=0,
        description="Evenly spaced rows of each dataset whose language is detected; 0 for none.",
    )
