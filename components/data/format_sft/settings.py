"""Settings of the Format for SFT card."""

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import FieldSettings, split_names

DEFAULT_TEMPLATE = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}"

WRITTEN = ("prompt", "completion", "messages", "tools")
"""The columns that the card can write itself."""


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    template: str = Field(
        default=DEFAULT_TEMPLATE,
        min_length=1,
        description="Text with {instruction}, {input} and {output}; a written \\n is a newline, {{ and }} are "
        "braces. `chat` instead of a text makes conversations for the base model's own chat template.",
    )
    system_prompt: str = Field(
        default="", description="With template = chat: system message of the conversations that have none."
    )
    drop_empty_sections: bool = Field(
        default=False,
        description="Whether a section of the template (a block between blank lines) whose fields are all empty is "
        "left out.",
    )
    keep_columns: str = Field(
        default="",
        description="Columns of the data that are kept beside, separated by commas: for the slices of Evaluate.",
    )

    @field_validator("keep_columns")
    @classmethod
    def _other_names(cls, value: str) -> str:
        for name in split_names(value):
            if name in WRITTEN:
                raise ValueError(f"{name} is a column that this card writes; rename the data's own")
        return value
