"""Settings of the Train/Val Split card."""

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    val_ratio: float = Field(0.1, gt=0, lt=1)
    shuffle_seed: int = Field(42, ge=0)
    group_key: str = ""
    stratify_key: str = ""
    near_threshold: float = Field(0.8, ge=0, le=1)

    @field_validator("near_threshold")
    @classmethod
    def _is_off_or_measurable(cls, value: float) -> float:
        if 0 < value < 0.3:
            raise ValueError("below 0.3 unrelated rows count as alike; 0 does not look for near-duplicates")
        return value
