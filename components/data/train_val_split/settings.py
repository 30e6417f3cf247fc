"""Settings of the Train/Val Split card."""

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    val_ratio: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Target share of the rows for validation, between 0 and 1; met as closely as whole groups allow.",
    )
    shuffle_seed: int = Field(default=42, ge=0, description="Seed of the split and the order of rows.")
    group_key: str = Field(
        default="",
        description="Column whose equal values are kept on one side (a document, a user); empty for none.",
    )
    stratify_key: str = Field(
        default="",
        description="Column whose values have the same shares on both sides (a kind, a source, a language), as far as "
        "groups allow; empty for none.",
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Jaccard similarity from which rows are near-duplicates; 0 keeps only equal rows together.",
    )

    @field_validator("near_threshold")
    @classmethod
    def _is_off_or_measurable(cls, value: float) -> float:
        if 0 < value < 0.3:
            raise ValueError("below 0.3 unrelated rows count as near-duplicates; use 0 to skip near-duplicates")
        return value
