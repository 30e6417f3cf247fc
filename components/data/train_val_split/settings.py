"""Settings of the Train/Val Split card."""

from pydantic import Field, field_validator

from llm_finetune.components.shared.settings import FieldSettings


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    val_ratio: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the rows for validation, between 0 and 1; reached as nearly as whole groups allow.",
    )
    shuffle_seed: int = Field(default=42, ge=0, description="Seed of choice and order.")
    group_key: str = Field(
        default="", description="Column whose equal values stay on one side (a document, a user); empty for none."
    )
    stratify_key: str = Field(
        default="",
        description="Column whose values both sides are to have in the same shares (a kind, a source, a language), "
        "as far as groups allow; empty for none.",
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Share of common text (Jaccard similarity) from which rows are near-duplicates; 0 keeps only "
        "equal rows together.",
    )

    @field_validator("near_threshold")
    @classmethod
    def _is_off_or_measurable(cls, value: float) -> float:
        if 0 < value < 0.3:
            raise ValueError("below 0.3 unrelated rows count as alike; 0 does not look for near-duplicates")
        return value
