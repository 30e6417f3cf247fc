"""Settings of the Format for SFT card."""

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import FieldSettings, listed

DEFAULT_TEMPLATE = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}"

WRITTEN = ("prompt", "completion", "messages", "tools")
"""The columns that the card can write itself."""


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    template: str = Field(DEFAULT_TEMPLATE, min_length=1)
    system_prompt: str = ""
    drop_empty_sections: bool = False
    keep_columns: str = ""

    @field_validator("keep_columns")
    @classmethod
    def _other_names(cls, value: str) -> str:
        for name in listed(value):
            if name in WRITTEN:
                raise ValueError(f"{name} is a column that this card writes; rename the data's own")
        return value
