"""Settings of the Format for SFT card."""

from pydantic import Field

from llm_finetune.components.shared.settings import FieldSettings

DEFAULT_TEMPLATE = "### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}\\n\\n### Response:\\n{output}"


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    template: str = Field(DEFAULT_TEMPLATE, min_length=1)
    system_prompt: str = ""
    drop_empty_sections: bool = False
