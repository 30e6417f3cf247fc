"""Settings of the Filter & Clean card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.data.load_dataset.settings import Settings as Source
from llm_finetune.components.shared.settings import FieldSettings, split_names


def eval_set_source(named: str | Mapping[str, object]) -> Source:
    """Returns settings of Load Dataset for an evaluation set.

    Args:
        named: A path, a URL, the name of a Hub dataset (split `test`), or settings of Load Dataset.

    Raises:
        UserError: If the settings are invalid.
    """
    if isinstance(named, Mapping):
        return Source.of({"settings": {"max_samples": 0, **named}})
    if "://" in named:
        return Source.of({"source_type": "jsonl_url", "jsonl_url": named, "max_samples": 0})
    if Path(named).exists() or named.startswith(("/", ".")) or named.count("/") != 1:
        return Source.of({"source_type": "jsonl_path", "jsonl_path": named, "max_samples": 0})
    return Source.of({"source_type": "huggingface", "hf_dataset": named, "hf_split": "test", "max_samples": 0})


class Settings(FieldSettings):
    """Settings of the card; `component.py` documents them."""

    min_chars: int = Field(default=16, ge=0, description="Rows with fewer characters are dropped.")
    max_chars: int = Field(default=4096, ge=0, description="Rows with more characters are dropped; 0 for no limit.")
    drop_if_missing_output: bool = Field(default=True, description="Whether to drop rows with a null or blank answer.")
    repair: Literal["off", "control", "unicode"] = Field(
        default="control",
        description="`off`; `control` removes control characters and terminal escapes; `unicode` also fixes wrongly "
        "decoded text, half- and full-width characters and line endings (ftfy).",
    )
    languages: str = Field(
        default="",
        description="Languages to keep, as ISO 639-1 codes separated by commas (`en,de`); empty for all. Rows with "
        "fewer than 20 letters are kept.",
    )
    dedup: Literal["none", "exact", "near"] = Field(
        default="exact",
        description="`none`; `exact` drops rows that equal an earlier row except for case and white space; `near` also "
        "drops rows that share most of their text with an earlier row (5-byte shingles of input and output, or of "
        "instruction and output if there is no input).",
    )
    near_threshold: float = Field(
        default=0.8,
        ge=0.3,
        le=1.0,
        description="Jaccard similarity from which rows are near-duplicates, 0.3 to 1.",
    )
    eval_sets: list[str | dict[str, object]] = Field(
        default=[],
        description="Evaluation sets to exclude from training: each a path, a URL, the name of a Hub dataset (split "
        "`test`) or a mapping of Load Dataset's settings. Rows that share a word n-gram with one of them are "
        "dropped.",
    )
    eval_words: int = Field(
        default=13, ge=5, le=50, description="Number of words per n-gram: 13 as for GPT-3; 8 is stricter."
    )
    pii: Literal["off", "report", "redact"] = Field(
        default="report",
        description="`off`; `report` counts e-mail addresses, phone and card numbers, IBANs, IP addresses and the "
        "keys and tokens of known services in the kept rows; `redact` also replaces them in every column, for "
        "example by [EMAIL].",
    )
    phone_region: str = Field(
        default="US",
        pattern="^[A-Z]{2}$",
        description="Country of phone numbers without a country code, as two letters.",
    )

    @property
    def language_codes(self) -> list[str]:
        """Languages to keep; empty for all."""
        return [code.lower() for code in split_names(self.languages)]

    @field_validator("eval_sets")
    @classmethod
    def _are_sources(cls, value: list[str | dict[str, object]]) -> list[str | dict[str, object]]:
        for named in value:
            if not named:
                raise ValueError("an evaluation set needs a path, a URL, a Hub dataset or settings of Load Dataset")
            eval_set_source(named)
        return value

    @model_validator(mode="after")
    def _limits_are_ordered(self) -> "Settings":
        if self.max_chars and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars = {self.max_chars} is below min_chars = {self.min_chars}; 0 means no limit")
        return self
