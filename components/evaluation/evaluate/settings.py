"""Settings of the Evaluate card."""

from pydantic import Field

from llm_finetune.components.shared.settings import CardSettings


class Settings(CardSettings):
    """Settings of the Evaluate card; `component.py` describes them."""

    max_samples: int = Field(256, ge=0)
    generate_samples: int = Field(64, ge=0)
    max_new_tokens: int = Field(128, ge=1)
    tokens_per_batch: int = Field(8192, ge=1)
    seed: int = 42
