"""Settings of the Filter & Clean card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llm_finetune.components.data.load_dataset.settings import Settings as Source
from llm_finetune.components.shared.settings import FieldSettings, listed


def source_of(named: str | Mapping[str, Any]) -> Source:
    """Returns where an evaluation set lies.

    Args:
        named: A path, a URL, the name of a Hub dataset (its split `test`), or settings of Load Dataset.

    Raises:
        UserError: If the settings are impossible.
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

    min_chars: int = Field(16, ge=0)
    max_chars: int = Field(4096, ge=0)
    drop_if_missing_output: bool = True
    repair: Literal["off", "control", "unicode"] = "control"
    languages: str = ""
    dedup: Literal["none", "exact", "near"] = "exact"
    near_threshold: float = Field(0.8, ge=0.3, le=1.0)
    eval_sets: list[str | dict[str, Any]] = Field([])
    eval_words: int = Field(13, ge=5, le=50)
    pii: Literal["off", "report", "redact"] = "report"
    phone_region: str = Field("US", pattern="^[A-Z]{2}$")

    @property
    def language_codes(self) -> list[str]:
        """The languages to keep; empty for all."""
        return [code.lower() for code in listed(self.languages)]

    @field_validator("eval_sets")
    @classmethod
    def _are_sources(cls, value: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for named in value:
            if not named:
                raise ValueError("an evaluation set needs a path, a URL, a Hub dataset or settings of Load Dataset")
            source_of(named)
        return value

    @model_validator(mode="after")
    def _limits_leave_room(self) -> "Settings":
        if self.max_chars and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars = {self.max_chars} is below min_chars = {self.min_chars}; 0 means no limit")
        return self
