"""Settings of the Format for SFT card."""

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import FieldSettings, split_names

DEFAULT_TEMPLATE = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}"

WRITTEN_COLUMNS = ("prompt", "completion", "messages", "tools")
"""Columns that the card writes."""


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    template: str = Field(
        default=DEFAULT_TEMPLATE,
        min_length=1,
        description="Text with {instruction}, {input} and {output}; \\n is a newline, {{ and }} are braces. `chat` "
        "converts rows to conversations for the base model's own chat template.",
    )
    system_prompt: str = Field(
        default="", description="With template = chat: system message for conversations without one."
    )
    drop_empty_sections: bool = Field(
        default=False,
        description="Whether to omit a section of the template (a block between blank lines) if all its fields are "
        "empty.",
    )
    keep_columns: str = Field(
        default="",
        description="Further columns to keep, separated by commas, for the slices of Evaluate.",
    )

    @field_validator("keep_columns")
    @classmethod
    def _are_not_written(cls, value: str) -> str:
        for name in split_names(value):
            if name in WRITTEN_COLUMNS:
                raise ValueError(f"{name} is a column that this card writes; rename the column in the data")
        return value
